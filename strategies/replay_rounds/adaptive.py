"""A replay round whenever the memories have been forgotten by more than is allowed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt, Le

from strategies.protocols import ReplayView, RoundPlace
from strategies.replay_rounds.sensitivity import most_sensitive
from strategies.types import GroupName


@dataclass(frozen=True, slots=True)
class Adaptive:
    """A replay round after each round in which the mean loss rise of some task exceeds a threshold.

    The rise, in nats, is that of remembered examples over each one's lowest loss, as the clients
    last reported it under the model they received; no held-out data is looked at.
    Source: ours, on FPF (arXiv 2304.04158).
    """

    threshold: Annotated[float, Gt(0)] = 0.2
    share: Annotated[float, Gt(0), Le(1)] = 0.25
    steps: Annotated[int, Ge(1)] = 16
    rate: Annotated[float, Gt(0)] = 0.3

    def rounds_after(self, place: RoundPlace) -> int:
        return 1

    def groups(self, view: ReplayView) -> tuple[GroupName, ...]:
        if max(view.rises.values(), default=0.0) <= self.threshold:
            return ()
        return most_sensitive(view.sensitivity, self.share)
