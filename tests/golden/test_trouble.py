"""Whole runs that meet trouble half-way: interrupted, told, and resumed to the same bits."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest
from safetensors import SafetensorError

from orchestrator.conduct import reclaim, submit
from orchestrator.home import Home
from orchestrator.launch import run_in_process
from orchestrator.retention import Holds
from orchestrator.store import SqlRunStore, open_store
from orchestrator.store.address import make_engine
from orchestrator.store.base import RoundRecord, RunStatus, RunStore
from orchestrator.store.patience import Patience
from strategies.errors import StoreUnreachableError
from tests.conftest import tiny_config
from tests.contract.test_run_store import MINUTE

SHORT = {"learning__rounds_per_task": 1}  # five steps
Meet = Callable[[], None]


class Watched(SqlRunStore):
    """A database that is given up soon; before every commit ``meet`` is called with its step."""

    def meet(self, step: int) -> None:
        return

    def commit_round(self, run_id: str, record: RoundRecord, owner: str | None = None) -> bool:
        self.meet(record.step_index)
        return super().commit_round(run_id, record, owner)


@cache
def watched(url: str) -> Watched:
    open_store(url)._sessions.engine.dispose()
    return Watched(make_engine(url), Patience(limit_seconds=0.3))


class ImpatientHome(Home):
    def store(self) -> RunStore:
        self.require_writable()
        return watched(self.database_url)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    folder = tmp_path / "home"
    return ImpatientHome(folder=folder, database_url=f"sqlite:///{folder / 'perennial.db'}")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("undisturbed")
    home = ImpatientHome(folder=folder, database_url=f"sqlite:///{folder / 'perennial.db'}")
    run_id = submit(tiny_config(**SHORT), home)
    assert run_once(run_id, home) is RunStatus.COMPLETED
    return str(home.store().last_checkpoint(run_id))


def run_once(run_id: str, home: Home, on_progress: Meet = lambda: None) -> RunStatus:
    return run_in_process(run_id, tiny_config(**SHORT), home, on_progress=on_progress)


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/disk/file")


def full_for_safetensors(*_: object, **__: object) -> None:
    raise SafetensorError("Error while serializing: I/O error: No space left (os error 28)")


@contextmanager
def no_room_for_checkpoints(home: Home, patch: pytest.MonkeyPatch) -> Iterator[Meet]:
    patch.setattr("orchestrator.store.blobs._PAUSES", ())

    def meet(step: int) -> None:
        if step == 1:
            patch.setattr("orchestrator.store.blobs._write", full)

    patch.setattr(home.store(), "meet", meet)
    yield lambda: None


@contextmanager
def no_room_for_an_adapter(home: Home, patch: pytest.MonkeyPatch) -> Iterator[Meet]:
    patch.setattr("strategies.peft_format.save_file", full_for_safetensors)
    yield lambda: None


@contextmanager
def no_room_for_replies(home: Home, patch: pytest.MonkeyPatch) -> Iterator[Meet]:
    """As a transport's file of early replies meets it."""
    run = home.store().list_runs()[0].run_id

    def meet() -> None:
        if len(home.store().rounds(run)) == 2:
            full()

    yield meet


@contextmanager
def no_room_for_a_commit(home: Home, patch: pytest.MonkeyPatch) -> Iterator[Meet]:
    """Where the database can be written again in time for the run's end."""

    def meet(step: int) -> None:
        if step == 2:
            raise StoreUnreachableError("disk is full: No space left")

    patch.setattr(home.store(), "meet", meet)
    yield lambda: None


@pytest.mark.parametrize(
    "trouble",
    [no_room_for_checkpoints, no_room_for_an_adapter, no_room_for_replies, no_room_for_a_commit],
)
def test_a_full_disk_interrupts_the_run_which_resumes_to_the_same_bits(
    trouble, home, undisturbed, monkeypatch
):
    run_id, store = submit(tiny_config(**SHORT), home), home.store()
    with monkeypatch.context() as patch, trouble(home, patch) as meet:
        assert run_once(run_id, home, meet) is RunStatus.INTERRUPTED
    run = store.get_run(run_id)
    assert (run.status, run.lease_owner) == (RunStatus.INTERRUPTED, None)
    assert "No space left" in run.reason
    assert len(store.rounds(run_id)) < 5
    reclaim(run_id, store)
    assert run_once(run_id, home) is RunStatus.COMPLETED
    assert store.last_checkpoint(run_id) == undisturbed
    assert Holds(home.blobs()).of(run_id) == set(store.checkpoints(run_id, limit=3))
    assert [e.kind for e in store.events(run_id)].count("published") == 2


def test_a_database_that_is_taken_away_stops_the_run_which_resumes_once_it_is_back(
    home, undisturbed
):
    run_id, store = submit(tiny_config(**SHORT), home), home.store()
    path = home.folder / "perennial.db"
    aside = path.with_name("aside.db")

    def take_away() -> None:
        if path.exists() and len(store.rounds(run_id)) == 2:
            path.rename(aside)

    with pytest.raises(StoreUnreachableError, match=r"was removed while it was in use\. Put"):
        run_once(run_id, home, take_away)
    assert not path.exists()
    aside.rename(path)
    assert store.get_run(run_id).status is RunStatus.RUNNING  # nobody could say otherwise
    store.renew_lease(run_id, str(store.get_run(run_id).lease_owner), -MINUTE)
    assert reclaim(run_id, store).status is RunStatus.INTERRUPTED
    assert run_once(run_id, home) is RunStatus.COMPLETED
    assert store.last_checkpoint(run_id) == undisturbed


def test_a_report_that_cannot_be_written_is_named_and_changes_nothing(home, undisturbed, caplog):
    run_id, store = submit(tiny_config(**SHORT), home), home.store()
    (home.run_folder(run_id) / "report.html").mkdir(parents=True)
    assert run_once(run_id, home) is RunStatus.COMPLETED
    assert f"no report of run {run_id}: Is a directory" in caplog.text
    assert store.last_checkpoint(run_id) == undisturbed
    assert not list(home.run_folder(run_id).glob(".report*"))


def test_who_loses_the_run_between_exchange_and_commit_writes_no_more(home, undisturbed, caplog):
    """Its lease had expired; another orchestrator took the run and carried it to its end."""
    run_id, store = submit(tiny_config(**SHORT), home), home.store()
    told = []

    def steal(step: int) -> None:
        if step == 2 and not told:
            told.append(step)
            store.renew_lease(run_id, str(store.get_run(run_id).lease_owner), -MINUTE)
            reclaim(run_id, store)
            assert run_once(run_id, home) is RunStatus.COMPLETED
            told.append((store.get_run(run_id), store.events(run_id)))

    store.meet = steal
    try:
        assert run_once(run_id, home) is RunStatus.INTERRUPTED
    finally:
        del store.meet
    assert "is left to its other orchestrator" in caplog.text
    assert (store.get_run(run_id), store.events(run_id)) == told[1]
    assert store.get_run(run_id).status is RunStatus.COMPLETED
    assert [r.step_index for r in store.rounds(run_id)] == list(range(5))
    assert store.last_checkpoint(run_id) == undisturbed
