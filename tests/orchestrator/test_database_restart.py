"""A PostgreSQL server stops, crashes or throws everybody out while rounds are committed."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest

from orchestrator.conduct import reclaim, submit
from orchestrator.home import Home
from orchestrator.launch import run_in_process
from orchestrator.store import SqlRunStore, open_store
from orchestrator.store.address import make_engine
from orchestrator.store.base import RoundRecord, RunStatus, RunStore
from orchestrator.store.patience import Patience
from strategies.errors import StoreUnreachableError
from tests.conftest import REPOSITORY, tiny_config
from tests.contract.test_run_store import a_round, new_run
from tests.postgres import PASSWORD, Server

ROUNDS = 60


@pytest.fixture
def url(postgres_server: Server) -> Iterator[str]:
    made = postgres_server.new_database()
    yield made
    postgres_server.drop(made)


def commit_through(store: RunStore, disturb: Callable[[int], None]) -> str:
    """Commit many rounds in a thread; ``disturb`` is told of each, maybe a little late."""
    run_id = new_run(store).run_id
    done = threading.Semaphore(0)

    def commit_all() -> list[bool]:
        results = []
        for step in range(ROUNDS):
            results.append(store.commit_round(run_id, a_round(run_id, step)))
            done.release()
        return results

    with ThreadPoolExecutor(1) as pool:
        committing = pool.submit(commit_all)
        for count in range(ROUNDS):
            assert done.acquire(timeout=60) or not committing.result(timeout=1)
            disturb(count)
        assert committing.result(timeout=60) == [True] * ROUNDS
    return run_id


def impatient(url: str) -> tuple[RunStore, list[float]]:
    """A store that tries again a little sooner, and the pauses it made: its losses."""
    open_store(url)
    naps: list[float] = []

    def nap(seconds: float) -> None:
        naps.append(seconds)
        time.sleep(seconds / 4)

    return SqlRunStore(make_engine(url), Patience(sleep=nap)), naps


def assert_each_once(store: RunStore, run_id: str) -> None:
    rounds = store.rounds(run_id)
    assert [r.step_index for r in rounds] == list(range(ROUNDS))
    assert {(len(r.replies), len(r.scores)) for r in rounds} == {(2, 1)}
    kinds = [event.kind for event in store.events(run_id)]
    assert kinds == ["status"] + ["planned"] * ROUNDS


@pytest.mark.parametrize("how", [Server.stop, Server.kill], ids=["shutdown", "crash"])
def test_no_round_is_lost_or_doubled_by_restarts(postgres_server, url, how):
    store, naps = impatient(url)

    def disturb(count: int) -> None:
        if count in (10, 30):
            how(postgres_server)
            postgres_server.start()

    assert_each_once(store, commit_through(store, disturb))
    assert len(naps) >= 2


def test_no_round_is_lost_or_doubled_by_terminated_connections(postgres_server, url):
    store, naps = impatient(url)

    def disturb(count: int) -> None:
        postgres_server.sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE application_name = 'perennial'"
        )

    assert_each_once(store, commit_through(store, disturb))
    assert len(naps) > ROUNDS // 4


def test_beyond_the_bound_the_error_says_so_and_what_was_committed_is_there(postgres_server, url):
    store = SqlRunStore(make_engine(url), Patience(limit_seconds=0.5))
    open_store(url)
    run_id = new_run(store).run_id
    store.commit_round(run_id, a_round(run_id))
    postgres_server.stop()
    try:
        with pytest.raises(StoreUnreachableError, match=r"\*\*\*@.*perennial resume") as caught:
            store.commit_round(run_id, a_round(run_id, 1))
    finally:
        postgres_server.start()
    assert PASSWORD not in str(caught.value)
    assert [r.step_index for r in store.rounds(run_id)] == [0]
    assert store.commit_round(run_id, a_round(run_id, 1))


def test_times_are_utc_whatever_zone_the_server_keeps(postgres_server, url):
    store = open_store(url)
    postgres_server.sql("ALTER ROLE perennial SET timezone = 'Asia/Kathmandu'")
    try:
        away = SqlRunStore(make_engine(url))
        run_id = new_run(away).run_id
        away.commit_round(run_id, a_round(run_id))
        assert away.rounds(run_id) == store.rounds(run_id)
        assert away.get_run(run_id).created_at.utcoffset() == timedelta(0)
        assert away.renew_lease(run_id, "a", timedelta(seconds=60))
        assert not store.renew_lease(run_id, "b", timedelta(seconds=60))
    finally:
        postgres_server.sql("ALTER ROLE perennial RESET timezone")


ONE_RUN = """
import sys
from orchestrator.home import Home
from tests.contract.test_run_store import a_round, new_run
store = Home.from_environment().store()
run_id = new_run(store, name=sys.argv[1]).run_id
assert all(store.commit_round(run_id, a_round(run_id, step)) for step in range(25))
"""


@pytest.mark.slow
def test_runs_of_several_processes_stand_side_by_side(url, tmp_path):
    """They meet on an empty database, so one of them makes its schema and three wait for that."""
    environment = os.environ | {
        "PERENNIAL_DATABASE": url,
        "PERENNIAL_HOME": str(tmp_path),
        "PYTHONPATH": str(REPOSITORY),
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", ONE_RUN, f"run-{i}"],
            env=environment, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True,
        )
        for i in range(4)
    ]  # fmt: skip
    assert [p.communicate(timeout=300)[1] for p in processes] == [""] * 4
    store = open_store(url)
    runs = store.list_runs()
    assert {run.name for run in runs} == {f"run-{i}" for i in range(4)}
    for run in runs:
        assert [r.step_index for r in store.rounds(run.run_id)] == list(range(25))


class Disconnected(SqlRunStore):
    """A database that goes away for good before step 3, and is back for the next orchestrator."""

    away = False

    def commit_round(self, run_id: str, record: RoundRecord, owner: str | None = None) -> bool:
        if record.step_index == 3 and not self.away:
            self.away = True
            raise StoreUnreachableError("out of reach for 30 s")
        return super().commit_round(run_id, record, owner)


class HomeOf(Home):
    """A data directory with a store of the test's own."""

    def store(self) -> RunStore:
        return STORES[self.database_url]


STORES: dict[str, RunStore] = {}


def test_a_run_whose_database_stayed_away_is_interrupted_and_resumes(database_url, tmp_path: Path):
    open_store(database_url)
    STORES[database_url] = store = Disconnected(make_engine(database_url))
    home, config = HomeOf(folder=tmp_path, database_url=database_url), tiny_config()
    run_id = submit(config, home)
    assert run_in_process(run_id, config, home, on_progress=lambda: None) is RunStatus.INTERRUPTED
    assert "out of reach" in store.get_run(run_id).reason
    reclaim(run_id, store)
    assert run_in_process(run_id, config, home, on_progress=lambda: None) is RunStatus.COMPLETED
    steps = [r.step_index for r in store.rounds(run_id)]
    assert steps == list(range(len(steps)))


@pytest.mark.slow
def test_a_run_outlives_restarts_and_learns_the_same(
    postgres_server, url, tmp_path, run_here, home
):
    """The same run on SQLite, undisturbed, ends in the same state to the bit."""
    config = tiny_config()
    undisturbed = home.store().get_run(run_here(config))
    away = Home(folder=tmp_path / "away", database_url=url)
    run_id, calls = submit(config, away), []

    def restart_sometimes() -> None:
        calls.append(1)
        if len(calls) in (4, 11):
            postgres_server.kill()
            threading.Timer(0.3, postgres_server.start).start()

    status = run_in_process(run_id, config, away, on_progress=restart_sometimes)
    assert status is RunStatus.COMPLETED
    assert len(calls) >= 11
    assert away.store().get_run(run_id).checkpoint == undisturbed.checkpoint
