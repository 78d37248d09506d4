"""What goes together with a buffer, whose updates may be made for an earlier state."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from strategies.errors import Fault
from strategies.protocols import Adaptive, Alternating

if TYPE_CHECKING:
    from orchestrator.config import RunConfig


def check_buffer(config: RunConfig) -> list[Fault]:
    """Everything that ``federation.buffer`` does not go with."""
    if config.federation.buffer is None:
        return []
    return [*_sizes(config), *_aggregation(config), *_decisions(config)]


def _sizes(config: RunConfig) -> Iterator[Fault]:
    federation, buffer = config.federation, config.federation.buffer
    size = buffer.size if buffer else 0
    if size > config.cohort_size():
        expected = f"at most the cohort of {config.cohort_size()}, which is at work at any time"
        yield Fault("federation.buffer.size", str(size), expected)
    if federation.min_replies > size:
        expected = f"at most federation.buffer.size = {size}"
        yield Fault("federation.min_replies", str(federation.min_replies), expected)
    if federation.deadline_seconds is not None:
        yield Fault(
            "federation.deadline_seconds",
            f"{federation.deadline_seconds:g}",
            "nothing with federation.buffer, which waits for nobody in particular",
            "federation.buffer.max_staleness bounds how late an update may be",
        )


def _aggregation(config: RunConfig) -> Iterator[Fault]:
    """A delta can be added to a later state only where entries of a factor keep their meaning."""
    aggregator, name = config.aggregator(), config.strategy.aggregation.name
    can, hint = aggregator.capabilities, "aggregation 'fedavg' or 'ffa', or rank 'dense'"
    if config.rank_allocator().max_rank == 0:
        return
    if not can.keeps_gauge or can.changes_base:
        expected = (
            "with federation.buffer one that keeps the gauge of LoRA factors and the frozen base: "
            "a late update was made relative to factors that this one has turned or merged since"
        )
        yield Fault("strategy.aggregation.name", repr(name), expected, hint)
    elif can.needs_individual_updates:
        expected = (
            "with federation.buffer a weighted sum of updates: this one weighs or cuts each client "
            "against the factors it was sent, which a late one no longer finds, or against the "
            "others of its round, whatever they were sent"
        )
        yield Fault("strategy.aggregation.name", repr(name), expected, hint)
    elif isinstance(aggregator, Alternating) and (
        aggregator.trained_factors(0) != aggregator.trained_factors(1)
    ):
        expected = (
            "with federation.buffer one that trains the same factors every round: a late update "
            "would move the factor that the others hold still"
        )
        yield Fault("strategy.aggregation.name", repr(name), expected, hint)


def _decisions(config: RunConfig) -> Iterator[Fault]:
    strategies = (
        ("strategy.layer_selection", config.layer_selector(), config.strategy.layer_selection.name),
        ("strategy.rank", config.rank_allocator(), config.strategy.rank.name),
    )
    for key, strategy, name in strategies:
        if isinstance(strategy, Adaptive):
            expected = (
                "with federation.buffer one that does not learn from the round it planned: replies "
                "come in that were planned in others"
            )
            yield Fault(f"{key}.name", repr(name), expected)
    if config.replay_rounds() is not None:
        expected = (
            "'none' with federation.buffer: clients at work for one round cannot replay in another"
        )
        yield Fault("replay.rounds.name", repr(config.replay.rounds.name), expected)
