"""The questions a strategy answers.  A strategy is a frozen dataclass: fields are hyper-parameters.

Strategies do no I/O, read no clock and keep no state of their own: what they must remember goes in
and comes out as ``State``, so that it is checkpointed with the run.

Most strategies answer one question.  One that needs more says so by having the method for it:
``Probing`` wants evidence before it decides, ``Adaptive`` learns from what came of its decisions,
``Initializing`` sets the starting point, ``Personalizing`` leaves parts with the clients,
``Alternating`` trains one factor at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from strategies.rng import Rng
from strategies.types import (
    Array,
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

ExampleIds = NDArray[np.int64]


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
    and class, as rows (task, class, count).  ``n <= capacity``.
    """

    capacity: int
    ids: ExampleIds
    tasks: NDArray[np.int64]
    labels: NDArray[np.int64]
    num_offered: int = 0
    offered: NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 3), dtype=np.int64))

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Contribution:
    """One client's part in an aggregation.

    ``delta`` is trained − sent.  ``weight`` per group is a scalar or one number per row.  The
    client was sent the first ``rank`` components of each low-rank group, read off the delta's own
    shape; a factor that is not in the delta stayed as it was sent.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What an aggregator can and needs; checked against the rest of a run file before it starts.

    ``exact``: the mean of the clients' models, up to a truncation it reports.
    ``needs_equal_rank``: all clients of a round must train a group at one rank.
    ``needs_individual_updates``: more than weighted sums, which rules out secure aggregation.
    ``changes_base``: what was merged goes into a frozen part that grows, and local training starts
    from fresh or averaged factors.
    ``keeps_gauge``: entry (i, j) of a factor means the same after a merge as before; an SVD turns
    the factors and a fresh start forgets them.
    """

    exact: bool
    needs_equal_rank: bool
    needs_individual_updates: bool
    changes_base: bool = False
    keeps_gauge: bool = False


class Aggregator(Protocol):
    """Updates of different shape → one global state."""

    capabilities: ClassVar[Capabilities]

    def aggregate(
        self,
        state: State,
        current: Tensors,
        contributions: Iterable[Contribution],
        scale: float,
        rng: Rng,
    ) -> Aggregated:
        """Fold ``contributions``, which are read once and in order, into ``current``."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What a strategy wants measured before a round, on how many batches."""

    statistics: tuple[Statistic, ...]
    batches: int
    max_rank: int = 0


@runtime_checkable
class Probing(Protocol):
    """A selector or rank policy that wants evidence before it decides."""

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


@runtime_checkable
class Alternating(Protocol):
    """An aggregator under which only some factors are trained."""

    def trained_factors(self, rounds_before: int) -> tuple[bool, bool]:
        """Whether A and whether B is trained, after so many training rounds of the run."""
        ...


Encoded = Mapping[str, Array]
"""One compressed tensor: named arrays; ``values`` is what a further compressor may work on."""


class Compressor(Protocol):
    """A smaller form of a tensor on the wire, and the way back.

    One that does not keep the shape of ``values`` can only be the first of several.
    """

    keeps_shape: ClassVar[bool]

    def encode(self, values: Array) -> Encoded:
        """Named arrays that stand for ``values``, float32 of any shape; one is called values."""
        ...

    def decode(self, encoded: Encoded, shape: tuple[int, ...]) -> Array:
        """float32 of ``shape``.

        Raises: WireError if ``encoded`` does not describe such a tensor.
        """
        ...

    def bytes_per_value(self) -> float:
        """What one value of a large tensor takes."""
        ...
