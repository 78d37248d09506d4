"""Plans of steps: what everybody is asked, with the tensors that travel along."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from orchestrator.schedule import Step
from strategies.types import Assignment, Holding, RoundView, Tensors

SELECTION, RANK, AGGREGATION, MERGING = "layer-selection", "rank", "aggregation", "merging"
SCREENING = "screening"
"""Names of what is remembered in a state, by kind of strategy."""
_MOST_NAMED: Final = 50  # clients in a note


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """An assignment, the tensors that travel with it, and how long an answer may be.

    ``holding`` is what the client has once it has answered.  ``expected_seconds`` of local work are
    0 where nothing is known of the client's speed; they say who is asked first, and nothing else.
    """

    assignment: Assignment
    tensors: Tensors
    max_reply_bytes: int
    holding: Holding = field(default_factory=Holding)
    expected_seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A step with everybody's orders and the view it was planned from.

    ``notes`` say what was decided against expectation.
    """

    step_index: int
    step: Step
    orders: tuple[Order, ...]
    view: RoundView
    notes: tuple[str, ...] = field(default=())

    @property
    def idle(self) -> bool:
        """No client is at a task it has examples of: there is nothing to do, and nothing wrong."""
        return self.step.kind != "evaluate" and not self.view.clients


def listed(names: Sequence[str]) -> str:
    """Names for a note; of very many the first and how many more there are."""
    shown = ", ".join(names[:_MOST_NAMED])
    more = len(names) - _MOST_NAMED
    return f"{shown} and {more} more" if more > 0 else shown
