"""What monitoring reads of the run database: sums made by the database, and only what is new.

Everything a scrape asks is in this file.  A run's committed steps are read once, from the mark of
the last reading on; a mark whose step is gone, or was committed anew, starts over.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, NamedTuple, Protocol, runtime_checkable

from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session

from orchestrator.store.base import (
    UNDER_WAY,
    RoundRecord,
    RunRecord,
    RunStatus,
)
from orchestrator.store.bulk import bulk
from orchestrator.store.rows import rounds_after, run_record
from orchestrator.store.scores import ScoreTable
from orchestrator.store.sessions import Sessions
from orchestrator.store.sums import COLUMNS, round_totals_of
from orchestrator.store.tables import EventRow, RoundRow, RunRow
from orchestrator.store.totals import RoundTotals, summed

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


class Newest(NamedTuple):
    """A run's newest training step: its loss, and the largest truncation, where there are any."""

    loss: float | None
    truncation_max: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Increment:
    """What the steps after a mark add, up to the new ``mark``.

    ``anew``: the earlier reading of steps counts for nothing, these are all.  ``events`` counts by
    kind what happened after the earlier reading, ``event_id`` names the last.  ``kinds`` counts
    steps, ``seconds`` are the server's by phase.  ``outcomes`` counts replies by failure reason,
    None those that were used.  ``ranks`` counts, over trained groups of all replies, the rank they
    were asked to train at, 0 for dense.  ``newest`` is None if no step trained.
    """

    mark: Mark | None
    anew: bool
    event_id: int
    events: Mapping[str, int]
    kinds: Mapping[str, int]
    seconds: Mapping[str, float]
    outcomes: Mapping[str | None, int]
    bytes_up: int
    bytes_down: int
    ranks: Mapping[int, int]
    scores: ScoreTable
    newest: Newest | None


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
    steps = bulk(session, steps_after(run_id, after))
    totals = [round_totals_of(step) for step in steps]
    last_event, events = _events(session, run_id, event_id)
    return Increment(
        mark=Mark(steps[-1]["step_index"], steps[-1]["committed_at"]) if steps else mark,
        anew=after < 0,
        event_id=last_event,
        events=events,
        kinds=Counter(step["kind"] for step in steps),
        seconds=summed(step["seconds"] for step in steps),
        outcomes=_outcomes(totals),
        bytes_up=sum(each.bytes_up for each in totals),
        bytes_down=sum(each.bytes_down for each in totals),
        ranks=summed(each.asked_ranks for each in totals),
        scores=ScoreTable.of((step["step_index"], step["score_table"]) for step in steps),
        newest=next(
            (
                Newest(step["metrics"].get("loss"), step["truncation_max"])
                for step in reversed(steps)
                if step["kind"] == "train"
            ),
            None,
        ),
    )


def steps_after(run_id: str, after: int) -> Select[Any]:
    """A run's steps after ``after``, in order, by what is counted of them."""
    names = ("step_index", "committed_at", "kind", "seconds", "metrics", "score_table", "totals")
    columns = [getattr(RoundRow, name) for name in (*names, *COLUMNS)]
    later = select(*columns).where(RoundRow.run_id == run_id, RoundRow.step_index > after)
    return later.order_by(RoundRow.step_index)


def _stands(session: Session, run_id: str, mark: Mark) -> bool:
    """Whether the step is still there, and not another that took its place."""
    committed = select(RoundRow.committed_at)
    found = committed.where(RoundRow.run_id == run_id, RoundRow.step_index == mark.step_index)
    return session.scalar(found) == mark.committed_at


def _outcomes(totals: Sequence[RoundTotals]) -> dict[str | None, int]:
    """Replies by failure reason."""
    found = Counter[str | None]({None: sum(each.clients_ok for each in totals)})
    found.update(reason or "unknown" for each in totals for _, reason in each.failures)
    return found


def _events(session: Session, run_id: str, after: int) -> tuple[int, dict[str, int]]:
    """The newest event's id, and how many there are after ``after`` by kind."""
    counted = (
        select(EventRow.kind, func.count(), func.max(EventRow.event_id))
        .where(EventRow.run_id == run_id, EventRow.event_id > after)
        .group_by(EventRow.kind)
    )
    rows = session.execute(counted).all()
    return max((row[2] for row in rows), default=after), {row[0]: row[1] for row in rows}
