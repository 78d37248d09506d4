"""What each client trains, and at which rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

from strategies.rng import Rng
from strategies.types import (
    ClientId,
    GroupName,
    Observation,
    Ranks,
    RoundView,
    Selection,
    State,
    Statistic,
    Tensors,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What a strategy wants measured before a round, on how many batches of new examples.

    ``remembered``: on what clients have in their memories too.
    """

    statistics: tuple[Statistic, ...]
    batches: int
    max_rank: int = 0
    remembered: bool = False


class LayerSelector(Protocol):
    """Which groups each client trains."""

    def select(self, view: RoundView, rng: Rng) -> Selection:
        """Groups per client; every client of the view gets at least one."""
        ...


class RankAllocator(Protocol):
    """Which LoRA rank each selected linear group gets.

    ``same_for_all``: whether all clients of a round that train a group do so at one rank.
    """

    same_for_all: ClassVar[bool]

    @property
    def max_rank(self) -> int:
        """The rank at which the server keeps its factors."""
        ...

    def allocate(self, view: RoundView, selection: Selection, rng: Rng) -> Ranks:
        """Ranks in ``0..max_rank`` for the linear groups of the selection.

        At rank 0 the client neither trains the group nor is sent its update.  A linear group that
        is left out is trained densely.
        """
        ...


@runtime_checkable
class Probing(Protocol):
    """A selector, rank policy or merger that wants evidence before it decides.

    A merger is asked once per task, with ``round_index`` the task's number of rounds.
    """

    def question(self, task_index: int, round_index: int) -> Question | None:
        """What to measure before this round; None where the last answer still serves."""
        ...


@runtime_checkable
class Adaptive(Protocol):
    """A selector or rank policy that learns from what came of its decisions."""

    @property
    def reports(self) -> tuple[Statistic, ...]:
        """What clients shall report of their local training."""
        ...

    def observe(self, view: RoundView, seen: Sequence[Observation], rng: Rng) -> State:
        """What to remember after a round, given the view it was planned from."""
        ...


@runtime_checkable
class Initializing(Protocol):
    """A rank policy that sets the starting point from a probe's evidence."""

    def initialize(self, view: RoundView, tensors: Tensors) -> tuple[Tensors, State]:
        """The tensors to start from and what to remember, given the cohort's evidence."""
        ...


@runtime_checkable
class Personalizing(Protocol):
    """A selector or aggregator that leaves parts of the model with each client."""

    def kept(self, view: RoundView) -> Mapping[ClientId, Mapping[GroupName, tuple[str, ...]]]:
        """Per client of the view, the parts that are its own."""
        ...
