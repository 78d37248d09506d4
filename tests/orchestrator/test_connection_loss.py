"""Connections break: every write takes effect once, and the caller hears the truth about it."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, func, select
from sqlalchemy.orm import Session

from orchestrator.store import SqlRunStore
from orchestrator.store.address import make_engine
from orchestrator.store.base import RunStatus
from orchestrator.store.patience import Patience
from orchestrator.store.rows import columns, is_committed
from orchestrator.store.schema import ensure_current
from orchestrator.store.sessions import Sessions
from orchestrator.store.tables import EventRow, RoundRow
from strategies.errors import LeaseLostError, StaleRunStatusError, StoreUnreachableError
from tests.contract.test_run_store import NOW, a_reply, a_round, new_run

SOON = Patience(limit_seconds=10.0, sleep=lambda _: None)


@pytest.fixture
def engine(database_url: str) -> Engine:
    made = make_engine(database_url)
    ensure_current(made)
    return made


@dataclass
class Cable:
    """Cuts the connection at COMMIT, ``cuts`` times: after it is carried out, or instead of it."""

    engine: Engine
    cuts: int = 0
    delivered: bool = True
    meanwhile: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        self.commit = self.engine.dialect.do_commit
        self.engine.dialect.do_commit = self

    def __call__(self, connection: Any) -> None:
        if self.cuts == 0:
            self.commit(connection)
            return
        self.cuts -= 1
        if self.delivered:
            self.commit(connection)
        else:
            connection.rollback()
        self.meanwhile()
        raise self.fault(connection)

    def fault(self, connection: Any) -> Exception:
        if self.engine.dialect.name == "sqlite":
            error = sqlite3.OperationalError("database is locked")
            error.sqlite_errorname = "SQLITE_BUSY"
            return error
        connection.dbapi_connection.close()
        return self.engine.dialect.dbapi.OperationalError("server closed the connection")


@pytest.fixture(params=["answer lost", "commit lost"])
def cable(engine: Engine, request: pytest.FixtureRequest) -> Cable:
    return Cable(engine, delivered=request.param == "answer lost")


def test_a_round_is_committed_once_and_reported_as_ours(engine, cable):
    store = SqlRunStore(engine, SOON)
    run_id = new_run(store).run_id
    record, cable.cuts = a_round(run_id), 2
    assert store.commit_round(run_id, record) is True
    assert store.commit_round(run_id, a_round(run_id, 1)) is True
    rounds = store.rounds(run_id)
    assert [(r.step_index, len(r.replies), len(r.scores)) for r in rounds] == [(0, 2, 1), (1, 2, 1)]
    assert [event.kind for event in store.events(run_id)] == ["status", "planned", "planned"]


def test_the_other_orchestrators_round_stays_theirs_whatever_was_lost(engine, database_url):
    """Same step, same state even, for runs are deterministic: the time tells whose it is."""
    store, other = SqlRunStore(engine, SOON), SqlRunStore(make_engine(database_url))
    run_id = new_run(store).run_id
    theirs = a_round(run_id, committed_at=NOW + timedelta(microseconds=1))
    cable = Cable(engine, cuts=1, delivered=False)
    cable.meanwhile = lambda: other.commit_round(run_id, theirs)
    assert store.commit_round(run_id, a_round(run_id)) is False
    assert [r.committed_at for r in store.rounds(run_id)] == [theirs.committed_at]


def test_a_commit_that_comes_through_while_it_is_tried_again_is_recognised(engine, database_url):
    """The server was still at it when the second try looked: the refusal is looked into again."""
    store, other = SqlRunStore(engine, SOON), SqlRunStore(make_engine(database_url))
    run_id = new_run(store).run_id
    record, tries = a_round(run_id), []

    def work(session: Session) -> str:
        tries.append(len(other.rounds(run_id)))
        if len(tries) == 2:
            other.commit_round(run_id, record)
        session.add(RoundRow(run_id=run_id, **columns(record)))
        return "ours"

    Cable(engine, cuts=1, delivered=False)
    written = Sessions(engine, SOON).write(
        "trying", work, lambda session: is_committed(session, run_id, record)
    )
    assert (written, tries) == ("ours", [0, 0])


def test_a_commit_in_doubt_whose_lease_was_taken_meanwhile_counts_if_it_is_there(
    engine, cable, database_url
):
    """Committed, the answer lost, the lease expired and taken: it is ours; else it is refused."""
    store, other = SqlRunStore(engine, SOON), SqlRunStore(make_engine(database_url))
    run_id, minute = new_run(store).run_id, timedelta(seconds=60)
    running, startable = RunStatus.RUNNING, [RunStatus.CREATED]
    store.transition(run_id, running, expected=startable, reason="go", owner="a")

    def take() -> None:
        other.renew_lease(run_id, "a", -minute)
        assert other.renew_lease(run_id, "b", minute)

    cable.meanwhile, cable.cuts = take, 1
    if cable.delivered:
        assert store.commit_round(run_id, a_round(run_id), "a")
    else:
        with pytest.raises(LeaseLostError):
            store.commit_round(run_id, a_round(run_id), "a")
    assert len(store.rounds(run_id)) == cable.delivered


def test_an_end_in_doubt_is_recognised_though_the_lease_is_given_back(engine, cable):
    store = SqlRunStore(engine, SOON)
    run_id = new_run(store).run_id
    running, done = RunStatus.RUNNING, RunStatus.COMPLETED
    store.transition(run_id, running, expected=[RunStatus.CREATED], reason="go", owner="a")
    cable.cuts = 1
    ended = store.transition(run_id, done, expected=[running], reason="done", owner="a")
    assert (ended.status, ended.lease_owner) == (done, None)
    assert [e.message for e in store.events(run_id)][1:] == ["running: go", "completed: done"]


def test_a_run_is_created_once(engine, cable):
    store = SqlRunStore(engine, SOON)
    cable.cuts = 1
    run = new_run(store)
    assert [each.run_id for each in store.list_runs()] == [run.run_id]
    assert len(store.events(run.run_id)) == 1


def test_a_transition_succeeds_once_and_is_not_taken_for_anothers(engine, cable):
    store = SqlRunStore(engine, SOON)
    run_id = new_run(store).run_id
    cable.cuts = 2
    moved = store.transition(run_id, RunStatus.RUNNING, expected=[RunStatus.CREATED], reason="go")
    assert moved.status is RunStatus.RUNNING
    assert [e.message for e in store.events(run_id)] == ["created: submitted", "running: go"]
    with pytest.raises(StaleRunStatusError):
        store.transition(run_id, RunStatus.RUNNING, expected=[RunStatus.CREATED], reason="go")


def test_events_leases_and_notes_take_effect_once(engine, cable):
    store = SqlRunStore(engine, SOON)
    run_id = new_run(store).run_id
    for step in range(2):
        store.commit_round(run_id, a_round(run_id, step, events=()))
    for call in (
        lambda: store.append_event(run_id, "note", "half\x00told"),
        lambda: store.renew_lease(run_id, "a", timedelta(seconds=60)),
        lambda: store.describe(run_id, task_names=["t"]),
        lambda: store.rewind(run_id, 1),
    ):
        cable.cuts = 1
        call()
        assert cable.cuts == 0
    assert [event.kind for event in store.events(run_id)] == ["status", "note", "rewound"]
    run = store.get_run(run_id)
    assert (run.lease_owner, run.task_names, run.checkpoint) == ("a", ("t",), "digest-0")


def test_a_database_that_stays_away_leaves_the_round_uncommitted_and_says_so(engine):
    now = [0.0]
    patience = Patience(clock=lambda: now[0], sleep=lambda s: now.append(now.pop() + s))
    store = SqlRunStore(engine, patience)
    run_id = new_run(store).run_id
    cable = Cable(engine, cuts=1000, delivered=False)
    with pytest.raises(StoreUnreachableError, match=f"30 s .* committing step 0 of run {run_id}"):
        store.commit_round(run_id, a_round(run_id))
    cable.cuts = 0
    assert store.rounds(run_id) == []
    assert store.commit_round(run_id, a_round(run_id))


def test_a_refused_commit_after_a_loss_is_still_refused_for_its_own_fault(engine, cable):
    """A reply that is already on record elsewhere: not a conflict of steps, and not hidden."""
    store = SqlRunStore(engine, SOON)
    run_id = new_run(store).run_id
    store.commit_round(run_id, a_round(run_id))
    doubled = a_round(run_id, 1, replies=(a_reply(run_id, 0, "c0"),))
    cable.cuts = 1
    with pytest.raises(Exception, match=r"(?i)unique"):
        store.commit_round(run_id, doubled)
    assert len(store.rounds(run_id)) == 1


def test_a_reader_sees_one_instant(engine, database_url):
    """Else a round could be read without the replies that somebody deletes meanwhile."""
    store, other = SqlRunStore(engine), SqlRunStore(make_engine(database_url))
    run_id = new_run(store).run_id
    count = select(func.count()).select_from(EventRow)

    def twice(session: Any) -> tuple[int, int]:
        first = session.scalar(count)
        other.append_event(run_id, "note", "meanwhile")
        return first, session.scalar(count)

    assert Sessions(engine, Patience()).read("reading twice", twice) == (1, 1)
    assert len(store.events(run_id)) == 2
