"""What a memory keeps, what is drawn from it, and when a round trains on it alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from strategies.rng import Rng
from strategies.types import GroupName

ExampleIds = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """Examples a memory may keep: ``ids`` and class ``labels`` (n,), −1 where there are none."""

    ids: ExampleIds
    labels: NDArray[np.int64]
    task: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayMemory:
    """What a client keeps of its past: an index over its own examples, never the examples.

    ``ids`` (n,) are example ids, ``tasks`` and ``labels`` (n,) the task each was met in and its
    class; ``num_offered`` counts all that were ever offered, ``offered`` (g, 3) those of each task
    and class, as rows (task, class, count).  ``n <= capacity``.  ``losses`` (n, 2) are each
    example's lowest and latest, NaN until measured.
    """

    capacity: int
    ids: ExampleIds
    tasks: NDArray[np.int64]
    labels: NDArray[np.int64]
    num_offered: int = 0
    offered: NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 3), dtype=np.int64))
    losses: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 2)))

    def __post_init__(self) -> None:
        if len(self.losses) != len(self.ids):  # a policy that moved examples knows no losses
            object.__setattr__(self, "losses", np.full((len(self.ids), 2), np.nan))

    def with_losses_of(self, earlier: ReplayMemory) -> ReplayMemory:
        """The same memory, examples that were in ``earlier`` with the losses they had there."""
        known = dict(zip(earlier.ids.tolist(), earlier.losses, strict=True))
        unknown = np.full(2, np.nan)
        rows = [known.get(example, unknown) for example in self.ids.tolist()]
        return replace(self, losses=np.array(rows).reshape(-1, 2))

    def measured(self, losses: NDArray[np.float64]) -> ReplayMemory:
        """The same memory after its examples' ``losses`` (n,) were taken."""
        lowest = np.fmin(self.losses[:, 0], losses)
        return replace(self, losses=np.column_stack([lowest, losses]))

    def rises(self) -> NDArray[np.float64]:
        """By how much each example's latest loss exceeds its lowest, (n,), NaN until measured."""
        rises: NDArray[np.float64] = self.losses[:, 1] - self.losses[:, 0]
        return rises

    @classmethod
    def empty(cls, capacity: int) -> ReplayMemory:
        """A memory that holds nothing yet."""
        nothing = np.zeros(0, dtype=np.int64)
        return cls(capacity=capacity, ids=nothing, tasks=nothing, labels=nothing)


class ReplayPolicy(Protocol):
    """What a memory keeps, and what is drawn from it."""

    def admit(self, memory: ReplayMemory, offer: Offer, rng: Rng) -> ReplayMemory:
        """The memory after the examples of ``offer`` were offered, in order."""
        ...

    def draw(self, memory: ReplayMemory, count: int, rng: Rng) -> ExampleIds:
        """``min(count, len)`` distinct ids."""
        ...


@runtime_checkable
class Weighing(Protocol):
    """A replay policy that draws by losses, and weights what it draws in the loss."""

    def weights(self, memory: ReplayMemory, ids: ExampleIds) -> NDArray[np.float64]:
        """A factor for the loss of each of ``ids``, (k,)."""
        ...


@runtime_checkable
class Retrieving(Protocol):
    """A replay policy that looks at candidates before it chooses.

    ``draw`` gives the candidates; ``interference`` (c,) is by how much the step at hand would raise
    the loss of each.
    """

    @property
    def candidates(self) -> int:
        """How many to look at."""
        ...

    def choose(self, ids: ExampleIds, interference: NDArray[np.float64], count: int) -> ExampleIds:
        """``min(count, c)`` of the candidates."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundPlace:
    """Where a training round stands: ``number`` of ``in_all`` rounds of the stream."""

    number: int
    in_all: int
    last_of_task: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayView:
    """What decides on a replay round.

    ``sensitivity`` of each group trained so far; ``rises`` are the mean loss rises of remembered
    examples per task, in nats.  No evaluation data.
    """

    sensitivity: Mapping[GroupName, float]
    rises: Mapping[int, float]


@runtime_checkable
class ReplayRounds(Protocol):
    """When a round trains on memories alone, and which groups it trains."""

    @property
    def steps(self) -> int:
        """Optimizer updates per client in a replay round."""
        ...

    @property
    def rate(self) -> float:
        """The learning rates of a replay round, as a multiple of those of training."""
        ...

    def rounds_after(self, place: RoundPlace) -> int:
        """How many replay rounds the schedule has after a training round."""
        ...

    def groups(self, view: ReplayView) -> tuple[GroupName, ...]:
        """What to train; nothing if there is no need for this replay round."""
        ...
