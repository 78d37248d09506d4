"""What a run database promises, whatever keeps it.

Rows become frozen records before they leave.  Times are aware and in UTC.  Any method may be called
from several threads and processes.  NaN and infinities survive a round trip.  A call that is
refused leaves the database as it was.  A database that is away is waited for; whatever call was
under way then takes effect once, or raises StoreUnreachableError at the end of the wait.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

from strategies.types import ClientKind

if TYPE_CHECKING:
    from orchestrator.store.tallies import Tallies

LEASE: Final = timedelta(seconds=60)  # how long a lease lasts that is not renewed


class RunStatus(StrEnum):
    """Where a run is in its life."""

    CREATED = "created"
    RUNNING = "running"
    STOPPING = "stopping"  # somebody asked it to stop; it ends at the next safe point
    INTERRUPTED = "interrupted"  # stopped or its owner died; resumable
    FAILED = "failed"
    COMPLETED = "completed"


UNDER_WAY: Final = (RunStatus.RUNNING, RunStatus.STOPPING)
ALIVE: Final = (RunStatus.CREATED, *UNDER_WAY)
ENDED: Final = (RunStatus.INTERRUPTED, RunStatus.FAILED, RunStatus.COMPLETED)


RoundKind = Literal["train", "evaluate", "probe", "head", "replay"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """One run.  ``config`` is the whole validated run file as JSON-ready values."""

    run_id: str
    name: str
    status: RunStatus
    reason: str
    config: Mapping[str, Any]
    config_digest: str
    code_version: str
    environment: Mapping[str, str]
    task_names: tuple[str, ...]
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    progress: Mapping[str, Any]
    lease_owner: str | None
    lease_expires_at: datetime | None
    checkpoint: str | None
    adapter_path: str | None
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class EventRecord:
    """Something that happened to a run, append-only."""

    at: datetime
    kind: str
    message: str
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplyRecord:
    """One client's part in one step: what it was asked, what it cost, how it ended.

    ``ranks`` maps each trained group to its LoRA rank, 0 for a dense group.  ``seconds`` splits the
    time: ``total`` is push to reply, ``compute`` and its phases are the client's own.
    ``client_kind`` is what its profile said by then, None where that is not on record.
    """

    assignment_id: str
    client_id: str
    status: Literal["ok", "failed"]
    failure_reason: str | None
    failure_detail: str | None
    num_examples: int
    ranks: Mapping[str, int]
    bytes_down: int
    bytes_up: int
    seconds: Mapping[str, float]
    metrics: Mapping[str, float]
    peak_memory_bytes: int
    client_kind: ClientKind | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreRecord:
    """A cell of the accuracy matrix: one client's sums on one task after learning ``after_task``.

    ``after_task`` −1 is the untrained model.  ``mid_task`` cells were measured during a task and
    are not part of the matrix.  Of ``num_compared`` examples that the last release answered too,
    ``num_lost`` went from right to wrong and ``num_gained`` from wrong to right.
    """

    client_id: str
    after_task: int
    task_index: int
    num_examples: int
    num_correct: int
    loss_sum: float
    mid_task: bool = False
    num_lost: int = 0
    num_gained: int = 0
    num_compared: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundRecord:
    """One committed step of a run.

    ``seconds`` splits the server's time: planning, waiting, aggregation, commit.  ``truncation`` is
    the relative error the aggregation made, per group.  ``drift`` is how far local training moved a
    value of a group: the root of the mean square, averaged over the clients that trained it.
    """

    step_index: int
    task_index: int
    round_index: int
    kind: RoundKind
    committed_at: datetime
    checkpoint: str
    seconds: Mapping[str, float]
    metrics: Mapping[str, float]
    truncation: Mapping[str, float]
    drift: Mapping[str, float] = field(default_factory=dict)
    replies: tuple[ReplyRecord, ...] = ()
    scores: tuple[ScoreRecord, ...] = ()
    events: tuple[EventRecord, ...] = ()


class RunStore(Protocol):
    """The run database."""

    def create_run(
        self,
        *,
        name: str,
        config: Mapping[str, Any],
        config_digest: str,
        code_version: str,
        environment: Mapping[str, str],
    ) -> RunRecord:
        """A new run in status ``created`` under a fresh, sortable id; an event records it."""
        ...

    def get_run(self, run_id: str) -> RunRecord:
        """The run with that id or unique id prefix.

        Raises: RunNotFoundError naming the nearest ids.
        """
        ...

    def list_runs(
        self, *, status: Collection[RunStatus] | None = None, limit: int | None = None
    ) -> Sequence[RunRecord]:
        """Newest first: all, or the newest ``limit``."""
        ...

    def transition(
        self,
        run_id: str,
        to: RunStatus,
        *,
        expected: Collection[RunStatus],
        reason: str,
        owner: str | None = None,
    ) -> RunRecord:
        """Move the run to ``to`` if it is in one of ``expected``; one winner among racing callers.

        Sets ``started_at`` on the first move to running, ``ended_at`` on the way out and never
        before it, clears it on the way back in, and appends an event of kind ``status``.  On the
        way out the lease is given back, whoever had it.  With an ``owner`` the run is moved by its
        orchestrator: to running it takes the lease, out of it the lease must be its own.
        Raises: StaleRunStatusError naming the status found, LeaseLostError naming who has the
        lease; nothing is written then.
        """
        ...

    def renew_lease(
        self, run_id: str, owner: str, ttl: timedelta, *, progress: Mapping[str, Any] | None = None
    ) -> bool:
        """Take or keep the lease, and publish ``progress`` with it.

        False, and nothing written, while another owner's lease has not expired, and for a run that
        has ended.  What has expired is told by the database's clock, which all machines share; a
        lease that would last longer than any can is of a clock that was wrong, and is over.
        """
        ...

    def release_lease(self, run_id: str, owner: str) -> None:
        """Give the lease back; not holding it is fine."""
        ...

    def describe(self, run_id: str, *, task_names: Sequence[str]) -> None:
        """Record what is known only once clients have answered."""
        ...

    def set_adapter_path(self, run_id: str, path: str, owner: str | None = None) -> None:
        """Where the newest published adapter lies; an ``owner`` must have the lease.

        Raises: LeaseLostError, with nothing written.
        """
        ...

    def last_checkpoint(self, run_id: str) -> str | None:
        """Digest of the newest committed state."""
        ...

    def checkpoints(self, run_id: str, *, limit: int | None = None) -> Sequence[str]:
        """Digests of the committed states, newest first; of the newest ``limit`` if given."""
        ...

    def commit_round(self, run_id: str, record: RoundRecord, owner: str | None = None) -> bool:
        """Write a step with all its replies, scores and events, in one transaction.

        False, and nothing written, if that step is already committed.  An ``owner`` must still have
        the lease of a run under way, if only because nobody took it since it expired; it is renewed
        with the step.
        Raises: LeaseLostError naming who has the lease; nothing is written then.
        """
        ...

    def delete_run(self, run_id: str) -> None:
        """Forget the run with all that is on record of it.

        Raises: StaleRunStatusError, with nothing forgotten, while an orchestrator leads it.
        """
        ...

    def rounds(self, run_id: str) -> Sequence[RoundRecord]:
        """All committed steps in order, with their replies and scores (events are separate)."""
        ...

    def each_round(self, run_id: str) -> Iterator[RoundRecord]:
        """As ``rounds``, but a few at a time, so that what was looked at can be let go."""
        ...

    def rewind(self, run_id: str, step_index: int) -> None:
        """Forget the committed steps from ``step_index`` on: their states cannot be read any more.

        The events of those steps stay, and one of kind ``rewound`` is added if any step went.
        """
        ...

    def append_event(
        self, run_id: str, kind: str, message: str, data: Mapping[str, Any] | None = None
    ) -> None:
        """Add to the run's history."""
        ...

    def events(self, run_id: str) -> Sequence[EventRecord]:
        """The run's history, oldest first."""
        ...

    def tallies(self) -> Tallies:
        """What monitoring reads."""
        ...
