"""The questions a strategy answers.  A strategy is a frozen dataclass: fields are hyper-parameters.

Strategies do no I/O, read no clock and keep no state of their own: what they must remember goes in
and comes out as ``State``, so that it is checkpointed with the run.

Most strategies answer one question.  One that needs more says so by having the method for it:
``Probing`` wants evidence before it decides, ``Adaptive`` learns from what came of its decisions,
``Initializing`` sets the starting point, ``Personalizing`` leaves parts with the clients,
``Alternating`` trains one factor at a time, ``AfterRound`` edits what a round gave,
``TaskStart`` starts tasks elsewhere, ``Tallying`` sums up how clients moved.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from strategies.rng import Rng
from strategies.types import (
    Array,
    ClientId,
    Evidence,
    GroupName,
    GroupSpec,
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

    def rounds_after(self, place: RoundPlace) -> int:
        """How many replay rounds the schedule has after a training round."""
        ...

    def groups(self, view: ReplayView) -> tuple[GroupName, ...]:
        """What to train; nothing if there is no need for this replay round."""
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


@runtime_checkable
class Alternating(Protocol):
    """An aggregator under which only some factors are trained."""

    def trained_factors(self, rounds_before: int) -> tuple[bool, bool]:
        """Whether A and whether B is trained, after so many training rounds of the run."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadShape:
    """The classifier's rows: one of ``width`` per class."""

    num_classes: int
    width: int


@runtime_checkable
class HeadSolver(Protocol):
    """Sets the head's rows from sums over examples, which clients send once per example.

    ``head`` is the ``model.head`` it is made for; ``statistics`` are what clients sum, under the
    head's group.
    """

    head: ClassVar[str]
    statistics: ClassVar[tuple[Statistic, ...]]

    @property
    def precision(self) -> Literal["float32", "float16"]:
        """Of the sums on their way here."""
        ...

    def absorb(self, state: State, evidence: Tensors, shape: HeadShape) -> State:
        """The sums with one client's added.

        Raises: WireError if ``evidence`` does not have the form asked for.
        """
        ...

    def solve(self, state: State) -> tuple[Array, State]:
        """The rows, float32 (num_classes, width), and what to remember."""
        ...


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
