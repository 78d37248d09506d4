"""``Browsing`` on SQLAlchemy; ``tests/contract/test_query_plans.py`` holds it to its indices."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    Select,
    delete,
    exists,
    func,
    insert,
    or_,
    select,
)
from sqlalchemy.orm import Session

from orchestrator.store.base import (
    EventRecord,
    ReplyRecord,
    RoundRecord,
    RunRecord,
    RunStatus,
)
from orchestrator.store.browsing import (
    ClientPart,
    ClientRun,
    EventWindow,
    Found,
    KnownClient,
    NumberedEvent,
    Pulse,
    RunCourse,
    RunSums,
    Wanted,
    Window,
)
from orchestrator.store.bulk import Row, bulk
from orchestrator.store.drift import DriftTable
from orchestrator.store.rows import ROUND_COLUMNS, record_of, run_records
from orchestrator.store.scores import ScoreTable
from orchestrator.store.sessions import Sessions
from orchestrator.store.sums import CLIENT, COLUMNS, client_totals_of, round_totals_of
from orchestrator.store.tables import (
    ClientRow,
    EventRow,
    ReplyRow,
    RoundRow,
    RunRow,
    TagRow,
)
from orchestrator.store.totals import StepCost, StepRecord
from strategies.errors import RunNotFoundError, StoreError

_LONGEST_TAG: Final = 80
_BY_GROUP: Final = ("truncation", "drift")  # long, and of a whole run seldom needed step by step
_OF_STEP: Final = "step_"
_STEP: Final = [*(getattr(RoundRow, name) for name in ROUND_COLUMNS)]
_BRIEF: Final = [column for column in _STEP if column.key not in _BY_GROUP]
_SUMS: Final = [*(getattr(RoundRow, name) for name in COLUMNS), RoundRow.totals]
_REPLY: Final = [getattr(ReplyRow, name) for name in ReplyRecord.__dataclass_fields__]
_SORTED_BY: Final = {
    "created": RunRow.created_at,
    "name": RunRow.name,
    "acc": RunRow.acc,
    "forgetting": RunRow.forgetting,
}


class SqlBrowsing:
    """``Browsing`` for a store that has sessions."""

    _sessions: Sessions

    def find_runs(self, wanted: Wanted) -> Found:
        def query(session: Session) -> Found:
            total = session.scalar(select(func.count()).select_from(RunRow).where(*_which(wanted)))
            rows = session.scalars(page_of_runs(wanted)).all()
            return Found(runs=run_records(session, rows), total=total or 0)

        return self._sessions.read("finding runs", query)

    def count_by_status(self) -> Mapping[RunStatus, int]:
        query = select(RunRow.status, func.count()).group_by(RunRow.status)
        return self._sessions.read(
            "counting runs",
            lambda session: {RunStatus(status): n for status, n in session.execute(query)},
        )

    def known_tags(self) -> Mapping[str, int]:
        query = select(TagRow.tag, func.count()).group_by(TagRow.tag).order_by(TagRow.tag)
        return self._sessions.read(
            "reading tags", lambda session: {row[0]: row[1] for row in session.execute(query)}
        )

    def tag(self, run_id: str, *, add: Collection[str], remove: Collection[str]) -> RunRecord:
        wanted, gone = ({_tag(text) for text in texts} for texts in (add, remove))

        def work(session: Session) -> RunRecord:
            row = session.get(RunRow, run_id, with_for_update=True)
            if row is None:
                raise RunNotFoundError(f"no run {run_id!r}; see `perennial runs`")
            mine = TagRow.run_id == run_id
            session.execute(delete(TagRow).where(mine, TagRow.tag.in_(gone)))
            known = set(session.scalars(select(TagRow.tag).where(mine)))
            new = [{"run_id": run_id, "tag": tag} for tag in sorted(wanted - known - gone)]
            if new:
                session.execute(insert(TagRow), new)
            return run_records(session, [row])[0]

        return self._sessions.write(f"tagging run {run_id}", work)

    def sums(self, run_id: str) -> RunSums:
        def query(session: Session) -> RunSums:
            return RunSums(
                run=_run(session, run_id),
                steps=[_step(each) for each in bulk(session, all_steps(run_id))],
                clients=[client_totals_of(each) for each in bulk(session, all_clients(run_id))],
                scores=ScoreTable.of(_pairs(session, scores_of(run_id))),
            )

        return self._sessions.read(f"reading the sums of run {run_id}", query)

    def drift(self, run_id: str) -> DriftTable:
        return self._sessions.read(
            f"reading the drift of run {run_id}",
            lambda session: DriftTable.of(_pairs(session, drift_of(run_id))),
        )

    def course(self, run_id: str) -> RunCourse:
        def query(session: Session) -> RunCourse:
            return RunCourse(
                run=_run(session, run_id),
                costs=[StepCost(**each) for each in bulk(session, costs_of(run_id))],
                scores=ScoreTable.of(_pairs(session, scores_of(run_id))),
            )

        return self._sessions.read(f"reading the course of run {run_id}", query)

    def steps(self, run_id: str, window: Window) -> Sequence[StepRecord]:
        return self._sessions.read(
            f"reading steps of run {run_id}",
            lambda session: [_step(row) for row in bulk(session, some_steps(run_id, window))],
        )

    def replies(self, run_id: str, step_index: int) -> Sequence[ReplyRecord]:
        return self._sessions.read(
            f"reading step {step_index} of run {run_id}",
            lambda session: [
                ReplyRecord(**row) for row in bulk(session, replies_of_step(run_id, step_index))
            ],
        )

    def client_parts(self, run_id: str, client_id: str) -> Sequence[ClientPart]:
        return self._sessions.read(
            f"reading client {client_id} in run {run_id}",
            lambda session: [
                _part(row) for row in bulk(session, parts_of_client(run_id, client_id))
            ],
        )

    def client_runs(self, client_id: str, *, offset: int, limit: int) -> Sequence[ClientRun]:
        query = runs_of_client(client_id).offset(offset).limit(limit)
        return self._sessions.read(
            f"reading client {client_id}",
            lambda session: [
                ClientRun(
                    run_id=row["run_id"],
                    name=row["name"],
                    status=RunStatus(row["status"]),
                    totals=client_totals_of(row),
                )
                for row in bulk(session, query)
            ],
        )

    def known_clients(self, text: str, *, offset: int, limit: int) -> Sequence[KnownClient]:
        query = clients_named(text).offset(offset).limit(limit)
        return self._sessions.read(
            "reading clients",
            lambda session: [
                KnownClient(client_id=client, num_runs=n) for client, n in session.execute(query)
            ],
        )

    def pulse(self, run_id: str) -> Pulse:
        def query(session: Session) -> Pulse:
            row = session.execute(pulse_of(run_id)).one_or_none()
            if row is None:
                raise RunNotFoundError(f"no run {run_id!r}; see `perennial runs`")
            return Pulse(**dict(row._mapping) | {"status": RunStatus(row.status)})

        return self._sessions.read(f"reading the pulse of run {run_id}", query)

    def event_window(self, run_id: str, window: EventWindow) -> Sequence[NumberedEvent]:
        return self._sessions.read(
            f"reading events of run {run_id}",
            lambda session: [
                NumberedEvent(number=row.event_id, event=record_of(EventRecord, row))
                for row in session.scalars(some_events(run_id, window))
            ],
        )


def page_of_runs(wanted: Wanted) -> Select[Any]:
    """A page of ``wanted`` runs; ids break ties, so that no run is on two pages."""
    column = _SORTED_BY[wanted.sort]
    order = (column.desc(), RunRow.run_id.desc()) if wanted.descending else (column, RunRow.run_id)
    unknown = () if wanted.sort in ("created", "name") else (column.is_(None),)
    query = select(RunRow).where(*_which(wanted)).order_by(*unknown, *order)
    return query.offset(wanted.offset).limit(wanted.limit)


def all_steps(run_id: str) -> Select[Any]:
    """The steps of a run in order, without what they have by group."""
    return _in_order(run_id, *_BRIEF, *_SUMS)


def some_steps(run_id: str, window: Window) -> Select[Any]:
    """Steps of a window."""
    query = _in_order(run_id, *_STEP, *_SUMS).where(RoundRow.step_index >= window.first)
    return query.limit(window.limit)


def costs_of(run_id: str) -> Select[Any]:
    """What the steps of a run took, in order."""
    return _in_order(run_id, *(getattr(RoundRow, name) for name in StepCost.__dataclass_fields__))


def drift_of(run_id: str) -> Select[Any]:
    """Task and drift of the steps of a run in order."""
    return _in_order(run_id, RoundRow.task_index, RoundRow.drift)


def all_clients(run_id: str) -> Select[Any]:
    """The clients of a run by id."""
    return select(*CLIENT).where(ClientRow.run_id == run_id).order_by(ClientRow.client_id)


def scores_of(run_id: str) -> Select[Any]:
    """Index and packed scores of the steps of a run in order."""
    return _in_order(run_id, RoundRow.step_index, RoundRow.score_table)


def replies_of_step(run_id: str, step_index: int) -> Select[Any]:
    """The replies of one step."""
    return (
        select(*_REPLY)
        .join(RoundRow, RoundRow.round_id == ReplyRow.round_id)
        .where(RoundRow.run_id == run_id, RoundRow.step_index == step_index)
        .order_by(ReplyRow.reply_id)
    )


def parts_of_client(run_id: str, client_id: str) -> Select[Any]:
    """One client's replies, with what they were replies to."""
    step = [column.label(f"{_OF_STEP}{column.key}") for column in _BRIEF]
    return (
        select(*step, *_REPLY)
        .join(RoundRow, RoundRow.round_id == ReplyRow.round_id)
        .where(RoundRow.run_id == run_id, ReplyRow.client_id == client_id)
        .order_by(RoundRow.step_index, ReplyRow.reply_id)
    )


def runs_of_client(client_id: str) -> Select[Any]:
    """One client's sums, newest run first: ids sort by time."""
    return (
        select(ClientRow.run_id, RunRow.name, RunRow.status, *CLIENT)
        .join(RunRow, RunRow.run_id == ClientRow.run_id)
        .where(ClientRow.client_id == client_id)
        .order_by(ClientRow.run_id.desc())
    )


def clients_named(text: str) -> Select[str, int]:
    """Client ids from ``text`` on, as far as they begin with it."""
    begins = (
        (ClientRow.client_id >= text, ClientRow.client_id < f"{text}\N{REPLACEMENT CHARACTER}")
        if text
        else ()
    )
    counted = select(ClientRow.client_id, func.count()).where(*begins)
    return counted.group_by(ClientRow.client_id).order_by(ClientRow.client_id)


def pulse_of(run_id: str) -> Select[Any]:
    """Status, progress and the ends of a run's steps and events."""
    steps, events = RoundRow.run_id == run_id, EventRow.run_id == run_id
    return select(
        RunRow.status,
        RunRow.reason,
        RunRow.progress,
        select(func.count())
        .select_from(RoundRow)
        .where(steps)
        .scalar_subquery()
        .label("num_steps"),
        select(func.coalesce(func.max(RoundRow.step_index), -1))
        .where(steps)
        .scalar_subquery()
        .label("last_step"),
        select(func.coalesce(func.max(EventRow.event_id), 0))
        .where(events)
        .scalar_subquery()
        .label("last_event"),
    ).where(RunRow.run_id == run_id)


def some_events(run_id: str, window: EventWindow) -> Select[Any]:
    """Events of a window."""
    query = select(EventRow).where(EventRow.run_id == run_id)
    if window.kinds:
        query = query.where(EventRow.kind.in_(window.kinds))
    if window.before is not None:
        query = query.where(EventRow.event_id < window.before).order_by(EventRow.event_id.desc())
    else:
        query = query.where(EventRow.event_id > (window.after or 0)).order_by(EventRow.event_id)
    return query.limit(window.limit)


def _which(wanted: Wanted) -> list[ColumnElement[bool]]:
    found = list[ColumnElement[bool]]()
    mine = TagRow.run_id == RunRow.run_id
    if wanted.status is not None:
        found.append(RunRow.status.in_([each.value for each in wanted.status]))
    if wanted.tag:
        found.append(exists().where(mine, TagRow.tag == wanted.tag))
    if wanted.text:
        columns = (RunRow.name, RunRow.run_id)
        tagged = exists().where(mine, TagRow.tag.icontains(wanted.text, autoescape=True))
        found.append(or_(*(c.icontains(wanted.text, autoescape=True) for c in columns), tagged))
    return found


def _in_order(run_id: str, *columns: Any) -> Select[Any]:
    return select(*columns).where(RoundRow.run_id == run_id).order_by(RoundRow.step_index)


def _run(session: Session, run_id: str) -> RunRecord:
    row = session.get(RunRow, run_id)
    if row is None:
        raise RunNotFoundError(f"no run {run_id!r}; see `perennial runs`")
    return run_records(session, [row])[0]


def _pairs(session: Session, query: Select[Any]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """The rows of a query for a number and a document."""
    return ((number, document) for number, document in map(dict.values, bulk(session, query)))


def _step(row: Row) -> StepRecord:
    totals = round_totals_of({name: row.pop(name) for name in (*COLUMNS, "totals")})
    return StepRecord(record=RoundRecord(**{"truncation": {}, **row}), totals=totals)


def _part(row: Row) -> ClientPart:
    reply = ReplyRecord(**{name: row.pop(name) for name in ReplyRecord.__dataclass_fields__})
    step = {name.removeprefix(_OF_STEP): value for name, value in row.items()}
    return ClientPart(step=RoundRecord(**step, truncation={}), reply=reply)


def _tag(text: str) -> str:
    tag = text.strip()
    if not tag or len(tag) > _LONGEST_TAG or not tag.isprintable():
        raise StoreError(
            f"tag {text!r:.100} cannot be used; expected one line of 1 to {_LONGEST_TAG} characters"
        )
    return tag
