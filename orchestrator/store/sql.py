"""The run database on SQLAlchemy: SQLite by default, PostgreSQL alike.

Every decision is a compare-and-set ``UPDATE … WHERE`` with its row count: ``SELECT … FOR UPDATE``
is dropped by SQLite without a word.  What is written is made up before the transaction, times
included, so that doing it again after a lost connection writes the same (``sessions.py``).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Engine, delete, func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from orchestrator.store import leases, sums
from orchestrator.store.base import (
    ENDED,
    LEASE,
    EventRecord,
    RoundRecord,
    RunRecord,
    RunStatus,
)
from orchestrator.store.ids import new_run_id
from orchestrator.store.patience import Patience
from orchestrator.store.reading import SqlBrowsing
from orchestrator.store.rows import (
    checkpoints_of,
    columns,
    has_step,
    insert_all,
    is_committed,
    is_logged,
    log,
    read_rounds,
    record_of,
    resolved,
    rounds_after,
    run_records,
)
from orchestrator.store.sessions import Sessions
from orchestrator.store.tables import EventRow, ReplyRow, RoundRow, RunRow, ScoreRow
from orchestrator.store.tallies import SqlTallies, Tallies
from strategies.errors import RunNotFoundError, StaleRunStatusError

# A clock that was set back by less than this still gives ids and times that sort.
_SET_BACK = timedelta(days=1)
_ROUNDS_AT_ONCE = 10
_SCRAPE_SECONDS = 0.5  # a database that is away is what monitoring has to tell, at once


class SqlRunStore(SqlBrowsing):
    """RunStore on a database whose schema is current."""

    def __init__(self, engine: Engine, patience: Patience | None = None) -> None:
        self._sessions = Sessions(engine, patience or Patience())

    def create_run(
        self,
        *,
        name: str,
        config: Mapping[str, Any],
        config_digest: str,
        code_version: str,
        environment: Mapping[str, str],
    ) -> RunRecord:
        while True:
            now = self._after_the_newest()
            values = {
                "run_id": new_run_id(now),
                "name": name,
                "status": RunStatus.CREATED,
                "reason": "submitted",
                "config": config,
                "config_digest": config_digest,
                "code_version": code_version,
                "environment": environment,
                "task_names": [],
                "created_at": now,
                "progress": {},
            }
            try:
                return self.get_run(self._created(values))
            except IntegrityError:
                continue  # two ids of one second met; draw again

    def _after_the_newest(self) -> datetime:
        """Now; just after the newest run's creation if the clock was set back since."""
        newest: datetime | None = self._sessions.read(
            "reading the newest run", lambda session: session.scalar(func.max(RunRow.created_at))
        )
        now = datetime.now(UTC)
        if newest is None or not now <= newest < now + _SET_BACK:
            return now
        return newest + timedelta(microseconds=1)

    def _created(self, values: Mapping[str, Any]) -> str:
        run_id: str = values["run_id"]
        first = EventRecord(at=values["created_at"], kind="status", message="created: submitted")

        def work(session: Session) -> str:
            session.add(RunRow(**values))
            session.flush()
            log(session, run_id, first)
            return run_id

        return self._sessions.write(
            f"creating run {run_id}", work, lambda session: is_logged(session, run_id, first)
        )

    def get_run(self, run_id: str) -> RunRecord:
        def query(session: Session) -> RunRecord:
            row = session.get(RunRow, run_id) or session.get(RunRow, resolved(session, run_id))
            if row is None:
                raise RunNotFoundError(f"run {run_id} was deleted just now")
            return run_records(session, [row])[0]

        return self._sessions.read(f"reading run {run_id}", query)

    def list_runs(
        self, *, status: Collection[RunStatus] | None = None, limit: int | None = None
    ) -> Sequence[RunRecord]:
        wanted = select(RunRow).order_by(RunRow.created_at.desc(), RunRow.run_id.desc())
        if status is not None:
            wanted = wanted.where(RunRow.status.in_([each.value for each in status]))

        def query(session: Session) -> Sequence[RunRecord]:
            rows = session.scalars(wanted.limit(limit)).all()
            return run_records(session, rows)

        return self._sessions.read("listing runs", query)

    def transition(
        self,
        run_id: str,
        to: RunStatus,
        *,
        expected: Collection[RunStatus],
        reason: str,
        owner: str | None = None,
    ) -> RunRecord:
        now = datetime.now(UTC)
        moved = EventRecord(
            at=now, kind="status", message=f"{to}: {reason}", data={"status": str(to)}
        )

        def work(session: Session) -> None:
            if owner and to in ENDED:
                leases.require(session, run_id, owner)
            won = session.execute(
                update(RunRow)
                .where(RunRow.run_id == run_id, RunRow.status.in_([e.value for e in expected]))
                .values(status=to, reason=reason, **leases.with_times(session, run_id, to, now))
            )
            if won.rowcount == 0:  # type: ignore[attr-defined]  # every UPDATE has one
                raise StaleRunStatusError(_stale(session, run_id, expected))
            taking = owner if to is RunStatus.RUNNING else None
            if taking and not leases.take(session, run_id, taking, LEASE, {}):
                raise leases.lost(session, run_id)
            log(session, run_id, moved)

        self._sessions.write(
            f"setting run {run_id} {to}", work, lambda session: is_logged(session, run_id, moved)
        )
        return self.get_run(run_id)

    def renew_lease(
        self, run_id: str, owner: str, ttl: timedelta, *, progress: Mapping[str, Any] | None = None
    ) -> bool:
        shown = {} if progress is None else sums.progress_columns(progress)

        def work(session: Session) -> bool:
            return leases.take(session, run_id, owner, ttl, shown)

        return self._sessions.write(f"renewing the lease of run {run_id}", work)

    def release_lease(self, run_id: str, owner: str) -> None:
        def work(session: Session) -> None:
            session.execute(
                update(RunRow)
                .where(RunRow.run_id == run_id, RunRow.lease_owner == owner)
                .values(lease_owner=None, lease_expires_at=None)
            )

        self._sessions.write(f"releasing the lease of run {run_id}", work)

    def describe(self, run_id: str, *, task_names: Sequence[str]) -> None:
        def work(session: Session) -> None:
            described = update(RunRow).where(RunRow.run_id == run_id)
            session.execute(described.values(task_names=list(task_names)))

        self._sessions.write(f"describing run {run_id}", work)

    def set_adapter_path(self, run_id: str, path: str, owner: str | None = None) -> None:
        def work(session: Session) -> None:
            if owner:
                leases.require(session, run_id, owner)
            session.execute(update(RunRow).where(RunRow.run_id == run_id).values(adapter_path=path))

        self._sessions.write(f"naming the adapter of run {run_id}", work)

    def last_checkpoint(self, run_id: str) -> str | None:
        return next(iter(self.checkpoints(run_id, limit=1)), None)

    def checkpoints(self, run_id: str, *, limit: int | None = None) -> Sequence[str]:
        return self._sessions.read(
            f"reading the checkpoints of run {run_id}",
            lambda session: checkpoints_of(session, run_id, limit),
        )

    def commit_round(self, run_id: str, record: RoundRecord, owner: str | None = None) -> bool:
        what = f"committing step {record.step_index} of run {run_id}"

        def work(session: Session) -> None:
            if owner:
                leases.require(session, run_id, owner)
            sums.lock(session, run_id)
            row = RoundRow(run_id=run_id, **columns(record), **sums.round_columns(record))
            session.add(row)
            session.flush()
            insert_all(session, ReplyRow, row.round_id, record.replies)
            insert_all(session, ScoreRow, row.round_id, record.scores)
            sums.add(session, run_id, record)
            for happened in record.events:
                log(session, run_id, happened)

        try:
            self._sessions.write(what, work, lambda session: is_committed(session, run_id, record))
        except IntegrityError:
            step = record.step_index
            if self._sessions.read(what, lambda session: has_step(session, run_id, step)):
                return False
            raise
        return True

    def delete_run(self, run_id: str) -> None:
        self._sessions.write(
            f"deleting run {run_id}", lambda session: leases.forget(session, run_id)
        )

    def rounds(self, run_id: str) -> Sequence[RoundRecord]:
        return self._sessions.read(
            f"reading the rounds of run {run_id}", lambda session: read_rounds(session, run_id)
        )

    def each_round(self, run_id: str) -> Iterator[RoundRecord]:
        after = -1
        while found := self._rounds_after(run_id, after):
            yield from found
            after = found[-1].step_index

    def _rounds_after(self, run_id: str, after: int) -> Sequence[RoundRecord]:
        return self._sessions.read(
            f"reading the rounds of run {run_id}",
            lambda session: rounds_after(session, run_id, after, _ROUNDS_AT_ONCE),
        )

    def rewind(self, run_id: str, step_index: int) -> None:
        now = datetime.now(UTC)

        def work(session: Session) -> None:
            sums.lock(session, run_id)
            gone = session.execute(
                delete(RoundRow).where(RoundRow.run_id == run_id, RoundRow.step_index >= step_index)
            )
            if count := gone.rowcount:  # type: ignore[attr-defined]  # every DELETE has one
                message = f"{count} step(s) from {step_index} on forgotten"
                log(session, run_id, EventRecord(at=now, kind="rewound", message=message))
                sums.sum_anew(session, run_id)

        self._sessions.write(f"rewinding run {run_id} to step {step_index}", work)

    def append_event(
        self, run_id: str, kind: str, message: str, data: Mapping[str, Any] | None = None
    ) -> None:
        event = EventRecord(at=datetime.now(UTC), kind=kind, message=message, data=dict(data or {}))
        self._sessions.write(
            f"recording an event of run {run_id}",
            lambda session: log(session, run_id, event),
            lambda session: is_logged(session, run_id, event),
        )

    def events(self, run_id: str) -> Sequence[EventRecord]:
        wanted = select(EventRow).where(EventRow.run_id == run_id).order_by(EventRow.event_id)
        return self._sessions.read(
            f"reading the events of run {run_id}",
            lambda session: [record_of(EventRecord, row) for row in session.scalars(wanted)],
        )

    def tallies(self) -> Tallies:
        hasty = replace(self._sessions.patience, limit_seconds=_SCRAPE_SECONDS)
        return SqlTallies(replace(self._sessions, patience=hasty))


def _stale(session: Session, run_id: str, expected: Collection[RunStatus]) -> str:
    found = session.scalar(select(RunRow.status).where(RunRow.run_id == run_id))
    return f"run {run_id} is {found or 'unknown'}, expected {' or '.join(sorted(expected))}"
