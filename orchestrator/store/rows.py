"""Between the rows of the tables and the frozen records that leave the store."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, Select, exists, insert, select
from sqlalchemy.orm import Session

from orchestrator.store.base import (
    EventRecord,
    ReplyRecord,
    RoundRecord,
    RunRecord,
    RunStatus,
    ScoreRecord,
)
from orchestrator.store.ids import resolve
from orchestrator.store.tables import EventRow, ReplyRow, RoundRow, RunRow, ScoreRow, TagRow

Record = TypeVar("Record", EventRecord, ReplyRecord, ScoreRecord)

ROUND_COLUMNS = [
    name for name in RoundRecord.__dataclass_fields__ if name not in ("replies", "scores", "events")
]


def columns(record: RoundRecord | EventRecord) -> dict[str, Any]:
    """The values of a record's own row."""
    names = ROUND_COLUMNS if isinstance(record, RoundRecord) else EventRecord.__dataclass_fields__
    return {name: getattr(record, name) for name in names}


def insert_all(
    session: Session,
    table: type[ReplyRow] | type[ScoreRow],
    round_id: int,
    records: Sequence[ReplyRecord] | Sequence[ScoreRecord],
) -> None:
    """All rows of a round's replies or scores, in their order."""
    rows = [{"round_id": round_id, **asdict(record)} for record in records]
    if rows:
        session.execute(insert(table), rows)


def grouped(
    session: Session, table: Any, run_id: str, record: type[Record]
) -> defaultdict[int, list[Record]]:
    """All rows of a run in one query, by round."""
    mine = select(table).join(RoundRow, RoundRow.round_id == table.round_id)
    return _by_round(session, table, mine.where(RoundRow.run_id == run_id), record)


def _by_round(
    session: Session, table: Any, query: Select[Any], record: type[Record]
) -> defaultdict[int, list[Record]]:
    found = defaultdict[int, list[Record]](list)
    for row in session.scalars(query.order_by(*table.__table__.primary_key.columns)):
        found[row.round_id].append(record_of(record, row))
    return found


def record_of(kind: type[Record], row: Any) -> Record:
    """The record of a row whose columns are called as its fields."""
    return kind(**{name: getattr(row, name) for name in kind.__dataclass_fields__})


def run_record(row: RunRow, tags: Sequence[str] = ()) -> RunRecord:
    """The record of a run."""
    values = {name: getattr(row, name) for name in RunRecord.__dataclass_fields__ if name != "tags"}
    values |= {"status": RunStatus(row.status), "task_names": tuple(row.task_names)}
    return RunRecord(**values, tags=tuple(tags))


def run_records(session: Session, rows: Sequence[RunRow]) -> list[RunRecord]:
    """The records of runs, in their order, with the tags of all in one query."""
    of_these = TagRow.run_id.in_([row.run_id for row in rows])
    tags = defaultdict[str, list[str]](list)
    for run_id, tag in session.execute(
        select(TagRow.run_id, TagRow.tag).where(of_these).order_by(TagRow.run_id, TagRow.tag)
    ):
        tags[run_id].append(tag)
    return [run_record(row, tags[row.run_id]) for row in rows]


def resolved(session: Session, text: str) -> str:
    """The id of the run that ``text`` names.

    Raises: RunNotFoundError naming the nearest ids.
    """
    known = session.scalars(
        select(RunRow.run_id).order_by(RunRow.created_at.desc(), RunRow.run_id.desc())
    )
    return resolve(text, known.all())


def checkpoints_of(session: Session, run_id: str, limit: int | None = None) -> Sequence[str]:
    """Digests of a run's committed states, newest first."""
    query = select(RoundRow.checkpoint).where(RoundRow.run_id == run_id)
    return session.scalars(query.order_by(RoundRow.step_index.desc()).limit(limit)).all()


def read_rounds(session: Session, run_id: str) -> list[RoundRecord]:
    """All committed steps of a run in order, with their replies and scores."""
    wanted = select(RoundRow).where(RoundRow.run_id == run_id).order_by(RoundRow.step_index)
    rows = session.scalars(wanted).all()
    return _whole(
        rows,
        grouped(session, ReplyRow, run_id, ReplyRecord),
        grouped(session, ScoreRow, run_id, ScoreRecord),
    )


def rounds_after(session: Session, run_id: str, after: int, limit: int) -> list[RoundRecord]:
    """The first ``limit`` committed steps after ``after``, with their replies and scores."""
    some = select(RoundRow).where(RoundRow.run_id == run_id, RoundRow.step_index > after)
    rows = session.scalars(some.order_by(RoundRow.step_index).limit(limit)).all()
    ids = [row.round_id for row in rows]
    replies, scores = select(ReplyRow), select(ScoreRow)
    return _whole(
        rows,
        _by_round(session, ReplyRow, replies.where(ReplyRow.round_id.in_(ids)), ReplyRecord),
        _by_round(session, ScoreRow, scores.where(ScoreRow.round_id.in_(ids)), ScoreRecord),
    )


def _whole(
    rows: Sequence[RoundRow],
    replies: Mapping[int, Sequence[ReplyRecord]],
    scores: Mapping[int, Sequence[ScoreRecord]],
) -> list[RoundRecord]:
    return [
        RoundRecord(
            **{name: getattr(row, name) for name in ROUND_COLUMNS},
            replies=tuple(replies[row.round_id]),
            scores=tuple(scores[row.round_id]),
        )
        for row in rows
    ]


def log(session: Session, run_id: str, event: EventRecord) -> None:
    """Add to the run's history."""
    session.add(EventRow(run_id=run_id, **columns(event)))


def is_logged(session: Session, run_id: str, event: EventRecord) -> bool:
    """Whether the run's history has this very event; its time tells it from all others."""
    return _exists(
        session,
        EventRow.run_id == run_id,
        EventRow.at == event.at,
        EventRow.kind == event.kind,
        EventRow.message == event.message,
    )


def is_committed(session: Session, run_id: str, record: RoundRecord) -> bool:
    """Whether this very step is there, and not another orchestrator's: same state, same time."""
    return _exists(
        session,
        RoundRow.run_id == run_id,
        RoundRow.step_index == record.step_index,
        RoundRow.checkpoint == record.checkpoint,
        RoundRow.committed_at == record.committed_at,
    )


def has_step(session: Session, run_id: str, step_index: int) -> bool:
    """Whether anybody has committed that step."""
    return _exists(session, RoundRow.run_id == run_id, RoundRow.step_index == step_index)


def _exists(session: Session, *conditions: ColumnElement[bool]) -> bool:
    return bool(session.scalar(select(exists().where(*conditions))))
