"""Two orchestrators never both write: every commit and every end asks for the lease."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from orchestrator.store import SqlRunStore, leases, open_store
from orchestrator.store import sql as sql_store
from orchestrator.store.address import make_engine
from orchestrator.store.base import RunStatus, RunStore
from strategies.errors import LeaseLostError, StaleRunStatusError
from tests.contract.test_run_store import MINUTE, a_round, new_run, race

RUNNING, COMPLETED = RunStatus.RUNNING, RunStatus.COMPLETED
STARTABLE = (RunStatus.CREATED, RunStatus.INTERRUPTED)
HOURS = timedelta(hours=6)


@pytest.fixture
def store(database_url: str) -> RunStore:
    return open_store(database_url)


@pytest.fixture
def led(store: RunStore) -> str:
    """A run that orchestrator "a" has begun."""
    run_id = new_run(store).run_id
    start(store, run_id, "a")
    return run_id


def start(store: RunStore, run_id: str, owner: str) -> None:
    store.transition(run_id, RUNNING, expected=STARTABLE, reason="started", owner=owner)


def end(store: RunStore, run_id: str, owner: str, to: RunStatus = COMPLETED) -> None:
    store.transition(run_id, to, expected=(RUNNING, RunStatus.STOPPING), reason="over", owner=owner)


def expire(store: RunStore, run_id: str, owner: str = "a") -> None:
    assert store.renew_lease(run_id, owner, -MINUTE)


def test_starting_takes_the_lease_and_ending_gives_it_back(store, led):
    assert store.get_run(led).lease_owner == "a"
    assert not store.renew_lease(led, "b", MINUTE)
    end(store, led, "a")
    assert store.get_run(led).lease_owner is None


def test_a_run_that_is_led_is_not_begun_again(store):
    run_id = new_run(store).run_id
    assert store.renew_lease(run_id, "a", MINUTE)
    before = store.get_run(run_id), store.events(run_id)
    with pytest.raises(LeaseLostError, match=r"\(a\) has the lease of run .* until"):
        start(store, run_id, "b")
    assert (store.get_run(run_id), store.events(run_id)) == before


def test_who_has_lost_the_lease_commits_publishes_and_ends_nothing(store, led):
    assert store.commit_round(led, a_round(led), "a")
    expire(store, led)
    assert store.renew_lease(led, "b", MINUTE)
    before = store.get_run(led), store.events(led), store.rounds(led)
    for attempt in (
        lambda: store.commit_round(led, a_round(led, 1), "a"),
        lambda: store.set_adapter_path(led, "/theirs", "a"),
        lambda: end(store, led, "a"),
        lambda: end(store, led, "a", RunStatus.FAILED),
    ):
        with pytest.raises(LeaseLostError, match=r"another orchestrator \(b\)"):
            attempt()
    assert repr((store.get_run(led), store.events(led), store.rounds(led))) == repr(before)
    assert store.commit_round(led, a_round(led, 1), "b")
    store.set_adapter_path(led, "/ours", "b")
    end(store, led, "b")
    assert store.get_run(led).adapter_path == "/ours"


def test_a_lease_that_has_expired_and_nobody_took_is_renewed_by_the_commit(store, led):
    expire(store, led)
    assert store.commit_round(led, a_round(led), "a")
    assert store.get_run(led).lease_expires_at > datetime.now(UTC) + MINUTE / 2
    assert not store.renew_lease(led, "b", MINUTE)


def test_a_run_that_was_taken_back_is_over_for_its_old_orchestrator(store, led):
    store.transition(led, RunStatus.INTERRUPTED, expected=[RUNNING], reason="its owner is gone")
    assert store.get_run(led).lease_owner is None
    assert not store.renew_lease(led, "a", MINUTE, progress={"phase": "mine"})
    for attempt in (
        lambda: store.commit_round(led, a_round(led), "a"),
        lambda: end(store, led, "a"),
    ):
        with pytest.raises(LeaseLostError, match="interrupted and no longer led from here"):
            attempt()
    start(store, led, "b")  # at once
    assert store.commit_round(led, a_round(led), "b")
    assert store.rounds(led)[0].step_index == 0


def test_of_two_that_race_for_the_next_step_one_commits_and_goes_on(database_url):
    """Each takes the lease if it can and commits a step of its own, again and again."""
    stores = [open_store(database_url), SqlRunStore(make_engine(database_url))]
    run_id = new_run(stores[0]).run_id
    start(stores[0], run_id, "0")
    for step in range(8):
        holder = stores[0].get_run(run_id).lease_owner
        expire(stores[0], run_id, str(holder))

        def attempt(i: int, step: int = step) -> bool:
            theirs = a_round(run_id, step, checkpoint=f"by-{i}")
            try:
                stores[i].renew_lease(run_id, str(i), MINUTE)
                return stores[i].commit_round(run_id, theirs, str(i))
            except LeaseLostError:
                return False

        results = race(2, *[lambda i=i: attempt(i) for i in range(2)])
        assert sum(results) == 1
        run = stores[0].get_run(run_id)
        assert run.checkpoint == f"by-{results.index(True)}"
        assert run.lease_owner == str(results.index(True))
    assert [r.step_index for r in stores[0].rounds(run_id)] == list(range(8))


def test_of_two_that_race_to_begin_a_run_one_leads_it(database_url):
    stores = [open_store(database_url), SqlRunStore(make_engine(database_url))]
    for _ in range(5):
        run_id = new_run(stores[0]).run_id
        results = race(2, *[lambda i=i, r=run_id: start(stores[i], r, str(i)) for i in range(2)])
        assert [type(result) for result in results].count(StaleRunStatusError) == 1
        assert stores[0].get_run(run_id).lease_owner == str(results.index(None))


def test_a_commit_holds_the_lease_until_it_is_done(database_url):
    """Who would take an expired lease waits for the commit under way, and then finds it renewed."""
    store, other = open_store(database_url), SqlRunStore(make_engine(database_url))
    run_id = new_run(store).run_id
    start(store, run_id, "a")
    expire(store, run_id)
    inside, taken, results = threading.Event(), threading.Event(), []

    def take() -> None:
        inside.wait(30)
        results.append(other.renew_lease(run_id, "b", MINUTE))
        taken.set()

    thread = threading.Thread(target=take)
    thread.start()
    require = leases.require

    def slowly(session, run, owner):
        require(session, run, owner)
        inside.set()
        assert not taken.wait(0.5)  # the other one is waiting, or has not begun

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(leases, "require", slowly)
        assert store.commit_round(run_id, a_round(run_id), "a")
    thread.join(60)
    assert results == [False]


class Clock(datetime):
    """This machine's clock, as somebody set it."""

    ahead = timedelta()

    @classmethod
    def now(cls, tz=None):
        return datetime.now(tz) + cls.ahead


@pytest.fixture
def clock(monkeypatch) -> Iterator[type[Clock]]:
    monkeypatch.setattr(leases, "datetime", Clock)
    monkeypatch.setattr(sql_store, "datetime", Clock)
    yield Clock
    Clock.ahead = timedelta()


@pytest.mark.parametrize("jump", [HOURS, -HOURS])
def test_a_clock_that_is_set_loses_nobody_the_lease(store, led, clock, jump):
    assert store.commit_round(led, a_round(led), "a")
    clock.ahead = jump
    assert store.renew_lease(led, "a", MINUTE)
    assert not store.renew_lease(led, "b", MINUTE)
    assert store.commit_round(led, a_round(led, 1), "a")
    clock.ahead = timedelta()
    assert store.renew_lease(led, "a", MINUTE)
    assert not store.renew_lease(led, "b", MINUTE)
    end(store, led, "a")


@pytest.mark.parametrize("jump", [HOURS, -HOURS])
def test_no_run_ends_before_it_began_whatever_the_clock(store, led, clock, jump):
    clock.ahead = jump
    end(store, led, "a")
    run = store.get_run(led)
    assert run.created_at <= run.started_at <= run.ended_at


def test_a_lease_of_the_future_does_not_lock_a_run_for_hours(store, led, clock, database_url):
    """Its orchestrator died; the clock it had was wrong, and was set right since."""
    clock.ahead = HOURS
    assert store.renew_lease(led, "a", MINUTE)
    clock.ahead = timedelta()
    if database_url.startswith("sqlite"):
        assert store.renew_lease(led, "b", MINUTE)
    else:  # the server's clock was right all along
        assert not store.renew_lease(led, "b", MINUTE)


def test_the_newest_run_is_the_last_one_made_though_the_clock_was_set_back(store, clock):
    made = [new_run(store).run_id]
    for ahead in (HOURS, -HOURS, timedelta()):
        clock.ahead = ahead
        made += [new_run(store).run_id for _ in range(2)]
    assert [run.run_id for run in store.list_runs()] == made[::-1]
    assert store.get_run("latest").run_id == made[-1]
    assert len(set(made)) == len(made)
    seconds = [run_id[:15] for run_id in made]
    assert seconds == sorted(seconds)


def test_a_deleted_run_is_gone_with_all_of_its_rows_and_no_other(store, led):
    other = new_run(store).run_id
    store.commit_round(led, a_round(led), "a")
    store.commit_round(other, a_round(other))
    with pytest.raises(StaleRunStatusError, match="running and led by an orchestrator"):
        store.delete_run(led)
    assert len(store.rounds(led)) == 1
    end(store, led, "a")
    store.delete_run(led)
    assert [run.run_id for run in store.list_runs()] == [other]
    assert (store.rounds(led), store.events(led)) == ([], [])
    assert len(store.rounds(other)) == 1
    with pytest.raises(LeaseLostError, match="was deleted"):
        store.commit_round(led, a_round(led, 1), "a")
