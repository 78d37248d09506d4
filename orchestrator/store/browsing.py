"""What pages and listings ask a run database besides ``RunStore``: bounded, indexed, by sums.

Whatever is asked of a run costs by its steps and clients, never by its replies.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from orchestrator.store.base import EventRecord, ReplyRecord, RoundRecord, RunRecord, RunStatus
from orchestrator.store.drift import DriftTable
from orchestrator.store.scores import ScoreTable
from orchestrator.store.totals import ClientTotals, StepCost, StepRecord

Sorting = Literal["created", "name", "acc", "forgetting"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which runs, and in which order.

    ``text`` is looked for in names, ids and tags, whatever its case.  Runs without a value of
    ``sort`` come last.
    """

    status: Collection[RunStatus] | None = None
    tag: str | None = None
    text: str = ""
    sort: Sorting = "created"
    descending: bool = True
    offset: int = 0
    limit: int = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Some of ``total`` runs."""

    runs: Sequence[RunRecord]
    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSums:
    """A run of one instant, with its steps in order and its clients by id.

    Of what steps have by group they have nothing but the largest truncation, in their totals.
    """

    run: RunRecord
    steps: Sequence[StepRecord]
    clients: Sequence[ClientTotals]
    scores: ScoreTable


@dataclass(frozen=True, slots=True, kw_only=True)
class RunCourse:
    """What a run has come to, and what its steps took, in order; of one instant."""

    run: RunRecord
    costs: Sequence[StepCost]
    scores: ScoreTable


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulse:
    """Where a run is: what changes while it is watched.

    ``last_step`` and ``last_event`` are −1 and 0 before there is any.
    """

    status: RunStatus
    reason: str
    progress: Mapping[str, Any]
    num_steps: int
    last_step: int
    last_event: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NumberedEvent:
    """An event and its number; numbers grow with time within a run."""

    number: int
    event: EventRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientPart:
    """A client's reply in a step; ``step`` has no replies, no scores and nothing by group."""

    step: RoundRecord
    reply: ReplyRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientRun:
    """A client in one of its runs."""

    run_id: str
    name: str
    status: RunStatus
    totals: ClientTotals


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownClient:
    """A client id, and how many runs asked it."""

    client_id: str
    num_runs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Steps from ``first`` on, at most ``limit`` of them."""

    first: int = 0
    limit: int = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class EventWindow:
    """Events above ``after``, oldest first; or below ``before``, newest first."""

    after: int | None = None
    before: int | None = None
    limit: int = 100
    kinds: Collection[str] = field(default_factory=tuple)


class Browsing(Protocol):
    """What can be asked.  A run id is whole here; ``RunStore.get_run`` finds it."""

    def find_runs(self, wanted: Wanted) -> Found:
        """A page of runs, and how many there are in all."""
        ...

    def count_by_status(self) -> Mapping[RunStatus, int]:
        """How many runs there are of each status that any has."""
        ...

    def known_tags(self) -> Mapping[str, int]:
        """How many runs have each tag, by tag."""
        ...

    def tag(self, run_id: str, *, add: Collection[str], remove: Collection[str]) -> RunRecord:
        """Give the run words and take some from it; those it has, or has not, are left so.

        Raises: StoreError for a tag that is empty, too long or not one line.
        """
        ...

    def sums(self, run_id: str) -> RunSums:
        """A run by its sums.

        Raises: RunNotFoundError.
        """
        ...

    def drift(self, run_id: str) -> DriftTable:
        """How far each group drifted in each of the run's steps."""
        ...

    def course(self, run_id: str) -> RunCourse:
        """A run by what comparisons need.

        Raises: RunNotFoundError.
        """
        ...

    def steps(self, run_id: str, window: Window) -> Sequence[StepRecord]:
        """Committed steps in order, without replies and scores."""
        ...

    def replies(self, run_id: str, step_index: int) -> Sequence[ReplyRecord]:
        """What the clients answered in one step."""
        ...

    def client_parts(self, run_id: str, client_id: str) -> Sequence[ClientPart]:
        """A client's replies over a run, in order."""
        ...

    def client_runs(self, client_id: str, *, offset: int, limit: int) -> Sequence[ClientRun]:
        """A client over runs, newest first."""
        ...

    def known_clients(self, text: str, *, offset: int, limit: int) -> Sequence[KnownClient]:
        """Clients whose id begins with ``text``, by id."""
        ...

    def pulse(self, run_id: str) -> Pulse:
        """Where the run is.

        Raises: RunNotFoundError.
        """
        ...

    def event_window(self, run_id: str, window: EventWindow) -> Sequence[NumberedEvent]:
        """Some of a run's history."""
        ...
