"""FPF: after a task, what forgets most is tuned on the memories alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt, Le

from strategies.protocols import ReplayView, RoundPlace
from strategies.replay_rounds.sensitivity import most_sensitive
from strategies.types import GroupName


@dataclass(frozen=True, slots=True)
class ForgettingPrioritized:
    """After every task, ``rounds`` rounds on the memories of the ``share`` most sensitive groups.

    Everything else stays as it is, bit for bit.  Goes with any client method that fills a memory.
    ``rate``: learning rates as a multiple of training's, for a few examples seen many times.
    Source: FPF, Zhao et al. 2023 (ICML), arXiv 2304.04158, §4; departs: groups are LoRA modules,
    the head and norms as far as they are trained; the server averages what clients tune; at lower
    learning rates than training's instead of higher ones.
    """

    share: Annotated[float, Gt(0), Le(1)] = 0.25
    rounds: Annotated[int, Ge(1)] = 1
    steps: Annotated[int, Ge(1)] = 16
    rate: Annotated[float, Gt(0)] = 0.3

    def rounds_after(self, place: RoundPlace) -> int:
        return self.rounds if place.last_of_task else 0

    def groups(self, view: ReplayView) -> tuple[GroupName, ...]:
        return most_sensitive(view.sensitivity, self.share)
