"""The updates that lie nearest to their neighbours, all but as many as may be hostile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt, Lt

from strategies.protocols import Contribution, Screened
from strategies.screening.central import Central
from strategies.types import State, Tensors


@dataclass(frozen=True, slots=True)
class MultiKrum:
    """Keeps the n − f updates with the best scores of ``krum``, to be aggregated as usual.

    ``hostile`` is the share of hostile clients, f = ⌈hostile · n⌉ of the n of a round, n ≥ 2f + 3.
    f updates are left out of every round, hostile or not: without hostile clients it costs those
    whose data differ most.  Only scores above ``outlier`` times the median of those kept are
    refused, which counts as the client's fault.  No weight counts more than ``weight_limit`` times
    the median one.
    Source: Blanchard et al. 2017, arXiv:1703.02757, §4 and §6 (m = n − f); departs: distances of
    products of factors, relative by group and row; ranks with a memory; weights within a limit.
    """

    hostile: Annotated[float, Ge(0), Lt(0.5)] = 0.3  # share of the clients of a round
    outlier: Annotated[float, Gt(1)] = 9.0  # times the median score; 9 is three times as far
    memory: Annotated[float, Ge(0), Lt(1)] = 0.8  # weight of the rounds before in a client's rank
    weight_limit: Annotated[float, Ge(1)] = 3.0  # times the median weight

    def suffices(self, count: int) -> bool:
        """Whether n ≥ 2f + 3."""
        return self._central.suffices(count)

    def screen(
        self,
        state: State,
        current: Tensors,
        contributions: Sequence[Contribution],
        scale: float,
    ) -> Screened:
        """The n − f most central contributions."""
        return self._central.screen(state, current, contributions, scale)

    @property
    def _central(self) -> Central:
        return Central(
            hostile=self.hostile,
            outlier=self.outlier,
            weight_limit=self.weight_limit,
            memory=self.memory,
        )
