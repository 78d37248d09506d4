"""Updates of a round → one state; heads that are solved from sums."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from strategies.rng import Rng
from strategies.types import Array, GroupName, State, Statistic, Tensors


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
