"""What monitoring reads of the run database: sums made by the database, and only what is new.

Everything a scrape asks is in this file.  A run's committed steps are read once, from the mark of
the last reading on; a mark whose step is gone, or was committed anew, starts over.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, NamedTuple, Protocol, runtime_checkable

from sqlalchemy import Row, Text, cast, func, select
from sqlalchemy.orm import Session

from orchestrator.store.base import (
    UNDER_WAY,
    RoundRecord,
    RunRecord,
    RunStatus,
)
from orchestrator.store.rows import rounds_after, run_record
from orchestrator.store.sessions import Sessions
from orchestrator.store.tables import EventRow, ReplyRow, RoundRow, RunRow, ScoreRow

MOST_UNDER_WAY: Final = 100  # runs; orchestrators that died leave theirs under way


class Mark(NamedTuple):
    """How far a run's steps were read: the newest step, and when it was committed."""

    step_index: int
    committed_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """How many runs there are by status, and those to watch.

    ``marks`` has the newest step of each watched run that has any.
    """

    statuses: Mapping[RunStatus, int]
    runs: Sequence[RunRecord]
    marks: Mapping[str, Mark]


class StepFacts(NamedTuple):
    """One committed step; ``seconds`` is the server's time by phase."""

    kind: str
    seconds: Mapping[str, float]


class Score(NamedTuple):
    """A client's share of a cell of the accuracy matrix."""

    client_id: str
    after_task: int
    task_index: int
    num_examples: int
    num_correct: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Increment:
    """What the steps after a mark add, up to the new ``mark``.

    ``anew``: the earlier reading of steps counts for nothing, these are all.  ``events`` counts by
    kind what happened after the earlier reading, ``event_id`` names the last.  ``outcomes`` counts
    replies by failure reason, None those that were used.  ``ranks`` counts, over trained groups of
    all replies, the rank they were asked to train at, 0 for dense.  ``loss`` and ``truncation`` are
    of the newest training step, None if there is none.
    """

    mark: Mark | None
    anew: bool
    event_id: int
    events: Mapping[str, int]
    steps: Sequence[StepFacts]
    outcomes: Mapping[str | None, int]
    bytes_up: int
    bytes_down: int
    ranks: Mapping[int, int]
    scores: Sequence[Score]
    loss: float | None
    truncation: Mapping[str, float] | None


@runtime_checkable
class Tallies(Protocol):
    """A run database that can be monitored.  Neither call waits for a database that is away."""

    def overview(self, recent: int) -> Overview:
        """All runs that are under way, at most ``MOST_UNDER_WAY``, and the ``recent`` newest ones.

        Raises: StoreUnreachableError, StoreDamagedError.
        """
        ...

    def increment(self, run_id: str, mark: Mark | None, event_id: int) -> Increment:
        """What the run's steps after ``mark`` add, and its events after ``event_id``.

        All steps count if ``mark`` is None or void by now.
        Raises: as ``overview``.
        """
        ...

    def rounds_after(self, run_id: str, step_index: int, limit: int) -> Sequence[RoundRecord]:
        """The run's first ``limit`` steps after ``step_index``, with their replies and scores.

        Raises: as ``overview``.
        """
        ...


@dataclass(frozen=True, slots=True)
class SqlTallies:
    """Tallies on SQLAlchemy."""

    sessions: Sessions

    def overview(self, recent: int) -> Overview:
        return self.sessions.read("counting runs", lambda session: _overview(session, recent))

    def increment(self, run_id: str, mark: Mark | None, event_id: int) -> Increment:
        return self.sessions.read(
            f"adding up run {run_id}", lambda session: _increment(session, run_id, mark, event_id)
        )

    def rounds_after(self, run_id: str, step_index: int, limit: int) -> Sequence[RoundRecord]:
        return self.sessions.read(
            f"reading the steps of run {run_id} after {step_index}",
            lambda session: rounds_after(session, run_id, step_index, limit),
        )


def _overview(session: Session, recent: int) -> Overview:
    counted = select(RunRow.status, func.count()).group_by(RunRow.status)
    newest = select(RunRow).order_by(RunRow.created_at.desc(), RunRow.run_id.desc())
    under_way = newest.where(RunRow.status.in_([status.value for status in UNDER_WAY]))
    found = {
        row.run_id: row
        for wanted, limit in ((newest, recent), (under_way, MOST_UNDER_WAY))
        for row in session.scalars(wanted.limit(limit))
    }
    return Overview(
        statuses={RunStatus(status): count for status, count in session.execute(counted)},
        runs=[run_record(row, ()) for row in found.values()],
        marks=_marks(session, list(found)),
    )


def _marks(session: Session, run_ids: Sequence[str]) -> dict[str, Mark]:
    last = (
        select(RoundRow.run_id, func.max(RoundRow.step_index).label("step_index"))
        .where(RoundRow.run_id.in_(run_ids))
        .group_by(RoundRow.run_id)
        .subquery()
    )
    newest = select(RoundRow.run_id, RoundRow.step_index, RoundRow.committed_at).join(
        last, (RoundRow.run_id == last.c.run_id) & (RoundRow.step_index == last.c.step_index)
    )
    return {run_id: Mark(step, at) for run_id, step, at in session.execute(newest)}


def _increment(session: Session, run_id: str, mark: Mark | None, event_id: int) -> Increment:
    after = mark.step_index if mark and _stands(session, run_id, mark) else -1
    columns = (RoundRow.step_index, RoundRow.committed_at, RoundRow.kind, RoundRow.seconds)
    later = select(*columns).where(RoundRow.run_id == run_id, RoundRow.step_index > after)
    steps = session.execute(later.order_by(RoundRow.step_index)).all()
    part = _Part(run_id, after)
    last_event, events = _events(session, run_id, event_id)
    outcomes, up, down = _replies(session, part)
    newest = _newest_training(session, part)
    return Increment(
        mark=Mark(steps[-1].step_index, steps[-1].committed_at) if steps else mark,
        anew=after < 0,
        event_id=last_event,
        events=events,
        steps=[StepFacts(step.kind, step.seconds) for step in steps],
        outcomes=outcomes,
        bytes_up=up,
        bytes_down=down,
        ranks=_ranks(session, part),
        scores=_scores(session, part),
        loss=newest.metrics.get("loss") if newest else None,
        truncation=newest.truncation if newest else None,
    )


class _Part(NamedTuple):
    """A run's steps after ``after``."""

    run_id: str
    after: int

    def rounds(self, query: Any) -> Any:
        """``query``, a Select that has rounds, of these alone."""
        return query.where(RoundRow.run_id == self.run_id, RoundRow.step_index > self.after)

    def of(self, table: type[ReplyRow | ScoreRow], query: Any) -> Any:
        """``query``, a Select of columns of ``table``, of what belongs to these."""
        return self.rounds(query.join(RoundRow, RoundRow.round_id == table.round_id))


def _stands(session: Session, run_id: str, mark: Mark) -> bool:
    """Whether the step is still there, and not another that took its place."""
    committed = select(RoundRow.committed_at)
    found = committed.where(RoundRow.run_id == run_id, RoundRow.step_index == mark.step_index)
    return session.scalar(found) == mark.committed_at


def _replies(session: Session, part: _Part) -> tuple[dict[str | None, int], int, int]:
    """Replies by failure reason, and their bytes up and down."""
    summed = select(
        ReplyRow.failure_reason,
        func.count(),
        func.sum(ReplyRow.bytes_up),
        func.sum(ReplyRow.bytes_down),
    )
    rows = session.execute(part.of(ReplyRow, summed).group_by(ReplyRow.failure_reason)).all()
    outcomes = {reason: count for reason, count, _, _ in rows}
    return outcomes, sum(int(row[2]) for row in rows), sum(int(row[3]) for row in rows)


def _events(session: Session, run_id: str, after: int) -> tuple[int, dict[str, int]]:
    """The newest event's id, and how many there are after ``after`` by kind."""
    counted = (
        select(EventRow.kind, func.count(), func.max(EventRow.event_id))
        .where(EventRow.run_id == run_id, EventRow.event_id > after)
        .group_by(EventRow.kind)
    )
    rows = session.execute(counted).all()
    return max((row[2] for row in rows), default=after), {row[0]: row[1] for row in rows}


def _ranks(session: Session, part: _Part) -> Counter[int]:
    """Most replies are asked for the same ranks as others, so the database counts whole texts."""
    text = cast(ReplyRow.ranks, Text)
    counted = part.of(ReplyRow, select(text, func.count()))
    found = Counter[int]()
    for ranks, count in session.execute(counted.group_by(text)):
        for rank, groups in Counter(json.loads(ranks).values()).items():
            found[rank] += groups * count
    return found


def _scores(session: Session, part: _Part) -> list[Score]:
    columns = select(*(getattr(ScoreRow, name) for name in Score._fields))
    measured = part.of(ScoreRow, columns).where(ScoreRow.mid_task.is_(False))
    return [Score(*row) for row in session.execute(measured)]


def _newest_training(session: Session, part: _Part) -> Row[Any] | None:
    trained = part.rounds(select(RoundRow.metrics, RoundRow.truncation))
    newest = trained.where(RoundRow.kind == "train").order_by(RoundRow.step_index.desc())
    found: Row[Any] | None = session.execute(newest.limit(1)).first()
    return found
