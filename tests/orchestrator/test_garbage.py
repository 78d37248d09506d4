"""`perennial gc` and `delete`: all that nobody needs goes, nothing else, and it is said before."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from orchestrator.checkpoint import load_state, save_state
from orchestrator.cli.app import app
from orchestrator.garbage import look
from orchestrator.home import Home
from orchestrator.retention import Keeper
from orchestrator.store.base import RunStatus
from strategies.errors import ConfigError, RunNotFoundError, StaleRunStatusError, StoreError
from tests.contract.test_run_store import MINUTE, a_round, new_run
from tests.orchestrator.test_checkpoint import a_state
from tests.orchestrator.test_retention import a_large_state, commit


@pytest.fixture
def home(home: Home, monkeypatch: pytest.MonkeyPatch) -> Home:
    for name, value in home.environment().items():
        monkeypatch.setenv(name, value)
    return home


def gc(*options: str) -> dict:
    done = CliRunner().invoke(app, ["gc", "--format", "json", *options], catch_exceptions=False)
    return json.loads(done.stdout)


def counts(told: dict) -> dict[str, int]:
    return {removal["what"]: removal["count"] for removal in told["removed"]}


def a_run(home: Home, status: RunStatus, steps: int = 4) -> str:
    """A run with as many steps, a client's state and what a killed process leaves."""
    store = home.store()
    keeper = Keeper(run_id=new_run(store).run_id, store=store, blobs=home.blobs(), keep=3)
    keeper.begin()
    run_id = keeper.run_id
    store.transition(run_id, RunStatus.RUNNING, expected=[RunStatus.CREATED], reason="", owner="a")
    for step in range(steps):
        commit(keeper, step, replace(a_large_state(step + 1), changed={run_id: step}))
    for path in (
        home.client_folder / run_id / "client-0" / "step-00000003.npz",
        home.client_folder / run_id / "client-0" / "step-00000004.123.tmp",
        home.run_folder(run_id) / "adapters" / ".task-000.123.tmp" / "adapter_model.safetensors",
        home.run_folder(run_id) / "report.html",
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * 100)
    if status is not RunStatus.RUNNING:
        store.transition(run_id, status, expected=[RunStatus.RUNNING], reason="", owner="a")
    return run_id


def everything(home: Home) -> dict[Path, bytes]:
    return {
        path: path.read_bytes()
        for path in home.folder.rglob("*")
        if path.is_file() and "perennial.db" not in path.name and path.name != ".lock"
    }


def test_what_is_needed_stays_and_what_is_not_goes_once(home):
    runs = {status: a_run(home, status) for status in (
        RunStatus.RUNNING, RunStatus.INTERRUPTED, RunStatus.FAILED, RunStatus.COMPLETED
    )}  # fmt: skip
    store, blobs = home.store(), home.blobs()
    orphan = save_state(a_state(99), blobs)
    half = blobs.path(orphan).with_name(".tmpabc")
    half.write_bytes(b"half")
    planned = gc("--dry-run")
    before = everything(home)
    assert planned["dry_run"] is True
    assert counts(planned) == {"blobs": 3, "temporary files": 6, "client states": 1}
    assert everything(home) == before
    told = gc()
    assert (told["removed"], told["left"]) == (planned["removed"], [])
    gone = before.keys() - everything(home).keys()
    assert blobs.path(orphan) in gone
    assert half in gone
    freed = sum(len(before[path]) for path in gone if "held" not in path.parts)
    assert sum(removal["bytes"] for removal in told["removed"]) == freed
    for status, run_id in runs.items():
        kept = 1 if status is RunStatus.COMPLETED else 3
        for digest in store.checkpoints(run_id, limit=kept):
            load_state(digest, blobs)
        report, states = home.run_folder(run_id) / "report.html", home.client_folder / run_id
        assert report.exists()
        assert states.exists() == (status is not RunStatus.COMPLETED)
        half_written = list(states.rglob("*.tmp")) + list(home.run_folder(run_id).rglob(".*.tmp"))
        assert len(half_written) == (2 if status is RunStatus.RUNNING else 0)
    assert counts(gc()) == {"blobs": 0, "temporary files": 0, "client states": 0}


def test_what_a_run_under_way_has_stored_and_not_committed_stays(home):
    store = home.store()
    run_id = a_run(home, RunStatus.RUNNING)
    keeper = Keeper(run_id=run_id, store=store, blobs=home.blobs(), keep=3)
    checkpoint = keeper.save(a_large_state(5, changed_at=7))
    gc()
    assert load_state(checkpoint, home.blobs()).step_index == 5
    assert store.commit_round(run_id, a_round(run_id, 4, checkpoint=checkpoint), "a")


def test_nothing_is_removed_while_a_checkpoint_is_written(home, monkeypatch):
    monkeypatch.setattr("orchestrator.cli.upkeep._LOCK_SECONDS", 0.1)
    orphan = save_state(a_state(), home.blobs())
    with home.blobs().writing(), pytest.raises(StoreError, match="was in use"):
        gc()
    assert home.blobs().has(orphan)


def test_files_of_runs_of_another_database_are_named_and_left(home, tmp_path):
    other = replace(home, database_url=f"sqlite:///{tmp_path / 'other.db'}")
    stranger = a_run(other, RunStatus.COMPLETED)
    before = everything(home)
    left = gc()["left"]
    assert len(left) == 3
    assert all(f"`perennial delete {stranger}`" in why for why in left)
    assert everything(home) == before


def test_the_cache_goes_only_if_asked_for(home):
    cached = home.cache_folder / "tokens" / "a.bin"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"x" * 10)
    gc()
    assert cached.exists()
    assert {"what": "cache", "count": 1, "bytes": 10} in gc("--cache")["removed"]
    assert not cached.exists()


def test_it_is_said_to_people_too(home):
    a_run(home, RunStatus.COMPLETED)
    done = CliRunner().invoke(app, ["gc", "--dry-run"], catch_exceptions=False)
    assert "would remove 1 client states, 200 B" in done.stdout


def test_a_deleted_run_leaves_nothing_and_harms_nobody(home):
    gone, other = (a_run(home, RunStatus.INTERRUPTED) for _ in range(2))
    CliRunner().invoke(app, ["delete", gone], catch_exceptions=False)
    assert not [path for path in home.folder.rglob("*") if gone in path.name]
    assert [run.run_id for run in home.store().list_runs()] == [other]
    load_state(home.store().last_checkpoint(other), home.blobs())
    assert look(home).paths["blobs"] == ()
    with pytest.raises(RunNotFoundError):
        CliRunner().invoke(app, ["delete", gone], catch_exceptions=False)


def test_a_run_that_is_led_is_not_deleted(home):
    run_id = a_run(home, RunStatus.RUNNING)
    before = everything(home)
    with pytest.raises(StaleRunStatusError, match="stop it first"):
        CliRunner().invoke(app, ["delete", run_id], catch_exceptions=False)
    assert everything(home) == before
    home.store().renew_lease(run_id, "a", -MINUTE)  # its orchestrator died
    CliRunner().invoke(app, ["delete", run_id], catch_exceptions=False)
    assert home.store().list_runs() == []


def test_a_deletion_that_was_killed_can_be_repeated(home):
    run_id = a_run(home, RunStatus.INTERRUPTED)
    home.store().delete_run(run_id)  # and the process ended
    CliRunner().invoke(app, ["delete", run_id], catch_exceptions=False)
    assert not [path for path in home.folder.rglob("*") if run_id in path.name]


def test_a_client_machine_forgets_runs_it_has_long_not_worked_for(home, tmp_path):
    work = tmp_path / "work"
    for run_id, days in (("old", 40), ("paused", 20), ("new", 0)):
        state = work / "clients" / run_id / "client-0" / "step-00000001.npz"
        state.parent.mkdir(parents=True)
        state.write_bytes(b"x" * 10)
        for path in (state, state.parent, state.parent.parent):
            os.utime(path, (time.time() - days * 86_400,) * 2)
    told = gc("--client", str(work))
    assert told["removed"] == [{"what": "client states", "count": 1, "bytes": 10}]
    assert told["left"] == ["2 runs with work in the last 30 days"]
    assert {path.name for path in (work / "clients").iterdir()} == {"paused", "new"}
    assert counts(gc("--client", str(work), "--idle-days", "10")) == {"client states": 1}
    with pytest.raises(ConfigError, match="without a folder `clients`"):
        gc("--client", str(tmp_path))
