"""The run database on SQLAlchemy: SQLite by default, any other URL alike.

Every decision is a compare-and-set ``UPDATE … WHERE`` with its row count: ``SELECT … FOR UPDATE``
is dropped by SQLite without a word.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, create_engine, delete, event, insert, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from orchestrator.store.base import (
    EventRecord,
    ReplyRecord,
    RoundRecord,
    RunRecord,
    RunStatus,
    ScoreRecord,
)
from orchestrator.store.ids import new_run_id, resolve
from orchestrator.store.tables import EventRow, ReplyRow, RoundRow, RunRow, ScoreRow
from strategies.errors import RunNotFoundError, StaleRunStatusError

_ENDED = (RunStatus.INTERRUPTED, RunStatus.FAILED, RunStatus.COMPLETED)
Record = TypeVar("Record", EventRecord, ReplyRecord, ScoreRecord)


def make_engine(url: str) -> Engine:
    """An engine; SQLite in WAL mode, with foreign keys, and with writers queueing, not failing."""
    engine = create_engine(url)
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_immediate)
    return engine


def _prepare_sqlite(connection: Any, _record: object) -> None:  # a DB-API connection
    connection.isolation_level = None  # BEGIN is ours, see below
    cursor = connection.cursor()
    for pragma in (
        "journal_mode=WAL",
        "busy_timeout=30000",
        "foreign_keys=ON",
        "synchronous=NORMAL",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_immediate(connection: Connection) -> None:
    # A transaction that reads first and writes later fails at once if another wrote in between,
    # whatever the busy timeout; taking the write lock first makes it wait instead.
    connection.exec_driver_sql("BEGIN IMMEDIATE")


class SqlRunStore:
    """RunStore on a database whose schema is current."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

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
            now = datetime.now(UTC)
            row = RunRow(
                run_id=new_run_id(now),
                name=name,
                status=RunStatus.CREATED,
                reason="submitted",
                config=config,
                config_digest=config_digest,
                code_version=code_version,
                environment=environment,
                task_names=[],
                created_at=now,
                progress={},
            )
            try:
                with self._writing() as session:
                    session.add(row)
                    session.flush()
                    _log(session, row.run_id, "status", "created: submitted", {})
                    run_id = row.run_id
            except IntegrityError:
                continue  # two ids of one second met; draw again
            return self.get_run(run_id)

    def get_run(self, run_id: str) -> RunRecord:
        with self._reading() as session:
            row = session.get(RunRow, run_id) or session.get(
                RunRow, self._resolved(session, run_id)
            )
            if row is None:
                raise RunNotFoundError(f"run {run_id} was deleted just now")
            return _run_record(row, _checkpoints(session, row.run_id, limit=1))

    def list_runs(
        self, *, status: Collection[RunStatus] | None = None, limit: int = 100
    ) -> Sequence[RunRecord]:
        query = select(RunRow).order_by(RunRow.created_at.desc(), RunRow.run_id.desc()).limit(limit)
        if status is not None:
            query = query.where(RunRow.status.in_([each.value for each in status]))
        with self._reading() as session:
            rows = session.scalars(query).all()
            newest = _newest_checkpoints(session, [row.run_id for row in rows])
            return [_run_record(row, newest.get(row.run_id, ())) for row in rows]

    def transition(
        self, run_id: str, to: RunStatus, *, expected: Collection[RunStatus], reason: str
    ) -> RunRecord:
        now = datetime.now(UTC)
        values: dict[str, Any] = {"status": to, "reason": reason}
        values["ended_at"] = now if to in _ENDED else None
        with self._writing() as session:
            won = session.execute(
                update(RunRow)
                .where(RunRow.run_id == run_id, RunRow.status.in_([e.value for e in expected]))
                .values(**values)
            )
            if won.rowcount == 0:  # type: ignore[attr-defined]  # every UPDATE has one
                found = session.scalar(select(RunRow.status).where(RunRow.run_id == run_id))
                wanted = " or ".join(sorted(expected))
                raise StaleRunStatusError(
                    f"run {run_id} is {found or 'unknown'}, expected {wanted}"
                )
            if to is RunStatus.RUNNING:
                session.execute(
                    update(RunRow)
                    .where(RunRow.run_id == run_id, RunRow.started_at.is_(None))
                    .values(started_at=now)
                )
            _log(session, run_id, "status", f"{to}: {reason}", {"status": str(to)})
        return self.get_run(run_id)

    def renew_lease(
        self, run_id: str, owner: str, ttl: timedelta, *, progress: Mapping[str, Any] | None = None
    ) -> bool:
        now = datetime.now(UTC)
        values: dict[str, Any] = {"lease_owner": owner, "lease_expires_at": now + ttl}
        if progress is not None:
            values["progress"] = dict(progress)
        free = or_(
            RunRow.lease_owner.is_(None), RunRow.lease_owner == owner, RunRow.lease_expires_at < now
        )
        with self._writing() as session:
            won = session.execute(
                update(RunRow).where(RunRow.run_id == run_id, free).values(**values)
            )
            return bool(won.rowcount)  # type: ignore[attr-defined]  # every UPDATE has one

    def release_lease(self, run_id: str, owner: str) -> None:
        with self._writing() as session:
            session.execute(
                update(RunRow)
                .where(RunRow.run_id == run_id, RunRow.lease_owner == owner)
                .values(lease_owner=None, lease_expires_at=None)
            )

    def describe(self, run_id: str, *, task_names: Sequence[str]) -> None:
        self._set(run_id, task_names=list(task_names))

    def set_adapter_path(self, run_id: str, path: str) -> None:
        self._set(run_id, adapter_path=path)

    def last_checkpoint(self, run_id: str) -> str | None:
        return next(iter(self.checkpoints(run_id)), None)

    def checkpoints(self, run_id: str) -> Sequence[str]:
        with self._reading() as session:
            return _checkpoints(session, run_id)

    def commit_round(self, run_id: str, record: RoundRecord) -> bool:
        plain = _columns(record)
        try:
            with self._writing() as session:
                row = RoundRow(run_id=run_id, **plain)
                session.add(row)
                session.flush()
                _insert_all(session, ReplyRow, row.round_id, record.replies)
                _insert_all(session, ScoreRow, row.round_id, record.scores)
                for happened in record.events:
                    session.add(EventRow(run_id=run_id, **_columns(happened)))
        except IntegrityError:
            if self._is_committed(run_id, record.step_index):
                return False
            raise
        return True

    def rounds(self, run_id: str) -> Sequence[RoundRecord]:
        query = select(RoundRow).where(RoundRow.run_id == run_id).order_by(RoundRow.step_index)
        with self._reading() as session:
            rows = session.scalars(query).all()
            replies = _grouped(session, ReplyRow, run_id, ReplyRecord)
            scores = _grouped(session, ScoreRow, run_id, ScoreRecord)
            return [
                RoundRecord(
                    **{name: getattr(row, name) for name in _ROUND_COLUMNS},
                    replies=tuple(replies[row.round_id]),
                    scores=tuple(scores[row.round_id]),
                )
                for row in rows
            ]

    def rewind(self, run_id: str, step_index: int) -> None:
        with self._writing() as session:
            gone = session.execute(
                delete(RoundRow).where(RoundRow.run_id == run_id, RoundRow.step_index >= step_index)
            )
            if count := gone.rowcount:  # type: ignore[attr-defined]  # every DELETE has one
                _log(
                    session,
                    run_id,
                    "rewound",
                    f"{count} step(s) from {step_index} on forgotten",
                    {},
                )

    def append_event(
        self, run_id: str, kind: str, message: str, data: Mapping[str, Any] | None = None
    ) -> None:
        with self._writing() as session:
            _log(session, run_id, kind, message, data or {})

    def events(self, run_id: str) -> Sequence[EventRecord]:
        query = select(EventRow).where(EventRow.run_id == run_id).order_by(EventRow.event_id)
        with self._reading() as session:
            return [_record(EventRecord, row) for row in session.scalars(query)]

    @contextmanager
    def _writing(self) -> Iterator[Session]:
        with Session(self._engine) as session, session.begin():
            yield session

    @contextmanager
    def _reading(self) -> Iterator[Session]:
        with Session(self._engine) as session:
            yield session

    def _set(self, run_id: str, **values: Any) -> None:
        with self._writing() as session:
            session.execute(update(RunRow).where(RunRow.run_id == run_id).values(**values))

    def _resolved(self, session: Session, text: str) -> str:
        known = session.scalars(
            select(RunRow.run_id).order_by(RunRow.created_at.desc(), RunRow.run_id.desc())
        )
        return resolve(text, known.all())

    def _is_committed(self, run_id: str, step_index: int) -> bool:
        query = select(RoundRow.round_id).where(
            RoundRow.run_id == run_id, RoundRow.step_index == step_index
        )
        with self._reading() as session:
            return session.scalar(query) is not None


_ROUND_COLUMNS = [
    name for name in RoundRecord.__dataclass_fields__ if name not in ("replies", "scores", "events")
]


def _columns(record: RoundRecord | EventRecord) -> dict[str, Any]:
    names = _ROUND_COLUMNS if isinstance(record, RoundRecord) else EventRecord.__dataclass_fields__
    return {name: getattr(record, name) for name in names}


def _insert_all(
    session: Session,
    table: type[ReplyRow] | type[ScoreRow],
    round_id: int,
    records: Sequence[ReplyRecord] | Sequence[ScoreRecord],
) -> None:
    rows = [{"round_id": round_id, **asdict(record)} for record in records]
    if rows:
        session.execute(insert(table), rows)


def _grouped(
    session: Session, table: Any, run_id: str, record: type[Record]
) -> defaultdict[int, list[Record]]:
    """All rows of a run in one query, by round."""
    query = (
        select(table)
        .join(RoundRow, RoundRow.round_id == table.round_id)
        .where(RoundRow.run_id == run_id)
        .order_by(*table.__table__.primary_key.columns)
    )
    found = defaultdict[int, list[Record]](list)
    for row in session.scalars(query):
        found[row.round_id].append(_record(record, row))
    return found


def _record(kind: type[Record], row: Any) -> Record:
    return kind(**{name: getattr(row, name) for name in kind.__dataclass_fields__})


def _run_record(row: RunRow, checkpoints: Sequence[str]) -> RunRecord:
    values = {
        name: getattr(row, name) for name in RunRecord.__dataclass_fields__ if name != "checkpoint"
    }
    values |= {"status": RunStatus(row.status), "task_names": tuple(row.task_names)}
    return RunRecord(**values, checkpoint=next(iter(checkpoints), None))


def _checkpoints(session: Session, run_id: str, limit: int | None = None) -> Sequence[str]:
    query = select(RoundRow.checkpoint).where(RoundRow.run_id == run_id)
    return session.scalars(query.order_by(RoundRow.step_index.desc()).limit(limit)).all()


def _newest_checkpoints(session: Session, run_ids: Sequence[str]) -> dict[str, tuple[str]]:
    query = (
        select(RoundRow.run_id, RoundRow.checkpoint)
        .where(RoundRow.run_id.in_(run_ids))
        .order_by(RoundRow.step_index)
    )
    return {run_id: (checkpoint,) for run_id, checkpoint in session.execute(query)}


def _log(session: Session, run_id: str, kind: str, message: str, data: Mapping[str, Any]) -> None:
    now = datetime.now(UTC)
    session.add(EventRow(run_id=run_id, at=now, kind=kind, message=message, data=dict(data)))
