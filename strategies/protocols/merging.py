"""What becomes of the state at a task's end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Protocol, runtime_checkable

from strategies.protocols.aggregating import Contribution
from strategies.protocols.deciding import Question
from strategies.types import Evidence, GroupName, GroupSpec, State, Tensors


@dataclass(frozen=True, slots=True, kw_only=True)
class Moves:
    """How ``count`` clients moved one group in a round, δ being trained − sent of the whole update.

    ``of_sum`` is ‖Σδ‖² and ``sum_of`` is Σ‖δ‖²: sums over clients suffice for both.
    """

    count: int
    of_sum: float
    sum_of: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeView:
    """All a merger may see besides the tensors and what it remembers.

    ``evidence`` is the newest of every client, with what the task's last probe found; ``moves`` are
    those of the round just closed, where the merger has them counted.
    """

    groups: tuple[GroupSpec, ...]
    task_index: int
    seed: int
    evidence: Evidence = field(default_factory=dict)
    moves: Mapping[GroupName, Moves] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """The tensors to go on with, what to remember, and the relative error of cuts per group."""

    tensors: Tensors
    state: State
    truncation: Mapping[GroupName, float] = field(default_factory=dict)


class Merger(Protocol):
    """What becomes of the global state at a task's end.

    ``changes_base``: each task's factors go into a frozen part that grows, and the next task starts
    from fresh ones.
    """

    changes_base: ClassVar[bool]

    def task_end(self, view: MergeView, tensors: Tensors, state: State) -> Merged:
        """The model to keep, given the one the task's last round left."""
        ...


@runtime_checkable
class AfterRound(Protocol):
    """A merger that edits what every round of training gave."""

    def after_round(
        self, view: MergeView, before: Tensors, tensors: Tensors, state: State
    ) -> Merged:
        """The model to go on with, given the round's start and what aggregation made of it."""
        ...


@runtime_checkable
class TaskStart(Protocol):
    """A merger whose tasks do not start from the model it kept after the task before."""

    def task_start(self, tensors: Tensors) -> Tensors:
        """The model the next task starts from, given the one that was kept."""
        ...


@runtime_checkable
class Refining(Protocol):
    """A merger that looks at the model it put together, and betters it, ``probes`` times per task.

    After the task's end the same clients answer ``inquiry`` on the same examples every time, and
    ``refine`` edits the model that the next of these probes, or the evaluation, sees.
    """

    @property
    def probes(self) -> int:
        """How often to look."""
        ...

    def inquiry(self) -> Question:
        """What to measure."""
        ...

    def refine(self, view: MergeView, tensors: Tensors, state: State) -> Merged:
        """The model to go on with; ``view.evidence`` is what this probe found, maybe nothing."""
        ...


class Tally(Protocol):
    """Running sums over one round's contributions; no contribution is kept."""

    def add(self, contribution: Contribution) -> None:
        """Count one client in."""
        ...

    def moves(self) -> dict[GroupName, Moves]:
        """Per group, how those who trained it moved it."""
        ...


@runtime_checkable
class Tallying(Protocol):
    """A merger that wants to know how far the clients of a round went together."""

    def tally(self, current: Tensors) -> Tally:
        """An empty tally of a round that starts at ``current``."""
        ...
