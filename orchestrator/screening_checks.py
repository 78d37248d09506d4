"""What goes together with screening, which compares whole updates of one round."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import TYPE_CHECKING

from strategies.errors import Fault
from strategies.protocols import Outvoting, Personalizing, Screener

if TYPE_CHECKING:
    from orchestrator.config import RunConfig


def check_screening(config: RunConfig) -> list[Fault]:
    """Everything that ``strategy.screening`` does not go with."""
    screener = config.screener()
    return [] if screener is None else [*_cohort(config, screener), *_whole(config)]


def _cohort(config: RunConfig, screener: Screener) -> Iterator[Fault]:
    """The honest clients of a round must be able to outvote the others."""
    federation = config.federation
    size = federation.buffer.size if federation.buffer else config.cohort_size()
    if isinstance(screener, Outvoting) and not screener.suffices(size):
        key = "federation.buffer.size" if federation.buffer else "federation.cohort"
        name, least = config.strategy.screening.name, next(filter(screener.suffices, count(size)))
        expected = f"at least {least} updates a round, 2f + 3, for strategy.screening = {name!r}"
        hint = "ask more clients per round, or lower strategy.screening.hostile"
        yield Fault(key, str(size), expected, hint)


def _whole(config: RunConfig) -> Iterator[Fault]:
    """The server must see what an update does to the model."""
    if isinstance(config.aggregator(), Personalizing):
        expected = (
            "'none' with strategy.aggregation = "
            f"{config.strategy.aggregation.name!r}, which leaves parts of the model with the "
            "clients: what an update does to their models cannot be seen"
        )
        yield Fault("strategy.screening.name", repr(config.strategy.screening.name), expected)
