"""k-FPF: no replay but k rounds of it, spread over the stream."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt, Le

from strategies.protocols import ReplayView, RoundPlace
from strategies.replay_rounds.sensitivity import most_sensitive
from strategies.types import GroupName


@dataclass(frozen=True, slots=True)
class RepeatedForgettingPrioritized:
    """``k`` replay rounds at equal distances over all rounds of the stream, borders or not.

    The last one comes after the last round.  With ``replay.share = 0`` nothing is replayed between.
    Source: k-FPF, Zhao et al. 2023 (ICML), arXiv 2304.04158, §4; departs as ``fpf`` does.
    """

    k: Annotated[int, Ge(0)] = 10
    share: Annotated[float, Gt(0), Le(1)] = 0.25
    steps: Annotated[int, Ge(1)] = 16
    rate: Annotated[float, Gt(0)] = 0.3

    def rounds_after(self, place: RoundPlace) -> int:
        done, total = place.number + 1, place.in_all
        return done * self.k // total - place.number * self.k // total

    def groups(self, view: ReplayView) -> tuple[GroupName, ...]:
        return most_sensitive(view.sensitivity, self.share)
