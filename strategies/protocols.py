"""The questions a strategy answers.  A strategy is a frozen dataclass: fields are hyper-parameters.

Strategies do no I/O, read no clock and keep no state of their own: what they must remember goes in
and comes out as ``State``, so that it is checkpointed with the run.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from strategies.rng import Rng
from strategies.types import (
    GroupName,
    Ranks,
    RoundView,
    Selection,
    State,
    Tensors,
)

ExampleIds = NDArray[np.int64]


class LayerSelector(Protocol):
    """Which groups each client trains."""

    def select(self, view: RoundView, rng: Rng) -> Selection:
        """Groups per client; every client of the view gets at least one."""
        ...


class RankAllocator(Protocol):
    """Which LoRA rank each selected linear group gets."""

    @property
    def max_rank(self) -> int:
        """The rank at which the server keeps its factors."""
        ...

    def allocate(self, view: RoundView, selection: Selection, rng: Rng) -> Ranks:
        """Ranks in ``1..max_rank`` for the linear groups of the selection."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayMemory:
    """What a client keeps of its past: an index over its own examples, never the examples.

    ``ids`` (n,) are example ids, ``tasks`` (n,) the task each was met in; ``num_offered`` counts
    all that were ever offered.  ``n <= capacity``.
    """

    capacity: int
    ids: ExampleIds
    tasks: NDArray[np.int64]
    num_offered: int = 0

    @classmethod
    def empty(cls, capacity: int) -> ReplayMemory:
        """A memory that holds nothing yet."""
        nothing = np.zeros(0, dtype=np.int64)
        return cls(capacity=capacity, ids=nothing, tasks=nothing)


class ReplayPolicy(Protocol):
    """What a memory keeps, and what is drawn from it."""

    def admit(self, memory: ReplayMemory, ids: ExampleIds, task: int, rng: Rng) -> ReplayMemory:
        """The memory after ``ids`` of ``task`` were offered, in order."""
        ...

    def draw(self, memory: ReplayMemory, count: int, rng: Rng) -> ExampleIds:
        """``min(count, len)`` distinct ids."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Contribution:
    """One client's part in an aggregation.

    ``delta`` is trained − sent.  ``weight`` per group is a scalar or one number per row.  The
    client was sent the first ``rank`` components of each low-rank group, read off the delta's own
    shape.
    """

    client_id: str
    delta: Tensors
    weight: dict[GroupName, NDArray[np.float64]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Aggregated:
    """The new tensors, what the aggregator wants to remember, and the error it knows it made.

    ``truncation`` is the relative Frobenius error per low-rank group, 0 where nothing was cut.
    """

    tensors: Tensors
    state: State
    truncation: dict[GroupName, float]


class Aggregator(Protocol):
    """Updates of different shape → one global state."""

    needs_equal_rank: ClassVar[bool]

    def aggregate(
        self, state: State, current: Tensors, contributions: Iterable[Contribution], scale: float
    ) -> Aggregated:
        """Fold ``contributions``, which are read once and in order, into ``current``."""
        ...
