"""The one update that lies nearest to its neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt, Lt

from strategies.protocols import Contribution, Screened
from strategies.screening.central import Central
from strategies.types import State, Tensors


@dataclass(frozen=True, slots=True)
class Krum:
    """Keeps one client's update: the one with the least squared distance to its n − f − 2 nearest.

    ``hostile`` is the share of hostile clients, f = ⌈hostile · n⌉ of the n of a round, n ≥ 2f + 3.
    Distances are between the changes of the model (‖D − D'‖_F, from factors; see ``changes``), over
    what both clients trained, each part relative to its median size.  Scores above ``outlier``
    times the median of the n − f best are refused, the rest is left out.  Ties go to the smaller
    id.

    Clients are ranked by a running mean of their scores, in which rounds before weigh ``memory``:
    where classes are new hostile updates stand out, later they may not.  0 ranks by the round.

    One client's update is one client's data: with clients that differ, far worse than
    ``multi-krum``.
    Source: Blanchard et al. 2017, arXiv:1703.02757, §4; departs: distances of products of factors,
    relative by group and row; ranks with a memory; who lies far out is named.
    """

    hostile: Annotated[float, Ge(0), Lt(0.5)] = 0.3  # share of the clients of a round
    outlier: Annotated[float, Gt(1)] = 9.0  # times the median score; 9 is three times as far
    memory: Annotated[float, Ge(0), Lt(1)] = 0.8  # weight of the rounds before in a client's rank

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
        """The most central contribution alone."""
        return self._central.screen(state, current, contributions, scale, most=1)

    @property
    def _central(self) -> Central:
        return Central(
            hostile=self.hostile, outlier=self.outlier, weight_limit=1.0, memory=self.memory
        )
