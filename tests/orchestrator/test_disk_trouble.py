"""Full, read-only, locked, replaced and damaged: tried for a while, then said in plain words."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import event

from clients.state_store import ClientStateStore
from clients.writing import NoRoomError
from orchestrator.checkpoint import load_state, save_state
from orchestrator.doctor import examine
from orchestrator.home import Home
from orchestrator.retention import largest_run_bytes
from orchestrator.store import SqlRunStore, open_store
from orchestrator.store.address import make_engine
from orchestrator.store.blobs import BlobStore
from orchestrator.store.patience import Patience
from orchestrator.trouble import in_words
from strategies.errors import StoreDamagedError, StoreError, StoreUnreachableError
from strategies.peft_format import _at_once, _save
from strategies.types import ClientId
from tests.clients.test_trainer import a_client_state
from tests.contract.test_run_store import a_round, new_run
from tests.disks import fill, set_read_only, small_disk
from tests.orchestrator.test_checkpoint import a_state
from tests.orchestrator.test_retention import a_keeper, a_large_state, commit


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", megabytes=8) as folder:
        yield folder


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.store.blobs._PAUSES", (0.0, 0.0))


def impatient(path: Path, busy_ms: int = 50) -> SqlRunStore:
    url = f"sqlite:///{path}"
    open_store(url)._sessions.engine.dispose()
    engine = make_engine(url)

    def hurry(connection: sqlite3.Connection, _: object) -> None:
        connection.execute(f"PRAGMA busy_timeout={busy_ms}")

    event.listen(engine, "connect", hurry)
    return SqlRunStore(engine, Patience(limit_seconds=0.3))


def test_a_checkpoint_on_a_full_disk_says_how_much_and_where_and_goes_once_there_is_room(disk):
    blobs = BlobStore(disk / "blobs")
    before = save_state(a_state(), blobs)
    filler = fill(disk)
    with pytest.raises(
        StoreError, match=r"of 32\d{5} bytes .*No space left.*blobs.*\(\d+ bytes free\)"
    ):
        save_state(a_large_state(1), blobs)
    assert list(blobs.rests()) == []
    filler.unlink()
    assert load_state(save_state(a_large_state(1), blobs), blobs).step_index == 1
    assert load_state(before, blobs).step_index == 3


def test_a_disk_that_has_room_again_in_a_moment_stops_nothing(disk, monkeypatch):
    filler = fill(disk)
    monkeypatch.setattr("orchestrator.store.blobs._PAUSES", (0.1,))
    monkeypatch.setattr("orchestrator.store.blobs.time.sleep", lambda _: filler.unlink())
    save_state(a_state(), BlobStore(disk / "blobs"))


def test_a_database_on_a_full_disk_loses_no_committed_round(disk):
    store = impatient(disk / "runs.db")
    run_id = new_run(store).run_id
    filler = fill(disk)
    steps = 0

    def commit_on() -> None:
        nonlocal steps
        while steps < 10_000:
            assert store.commit_round(run_id, a_round(run_id, steps))
            steps += 1

    with pytest.raises(StoreUnreachableError, match=r"disk is full\. Free space on its disk\. Ev"):
        commit_on()
    assert [r.step_index for r in store.rounds(run_id)] == list(range(steps))
    filler.unlink()
    assert store.commit_round(run_id, a_round(run_id, steps))


def test_a_clients_state_on_a_full_disk_is_refused_and_the_one_before_stays(disk):
    states, client = ClientStateStore(disk), ClientId("client-0")
    states.save("run", client, 1, a_client_state(5))
    filler = fill(disk)
    with pytest.raises(NoRoomError, match=r"client-0.step-00000002.npz cannot .*No space left"):
        states.save("run", client, 2, a_client_state(400_000))
    assert [path.name for path in (disk / "run" / client).iterdir()] == ["step-00000001.npz"]
    assert states.load("run", client, before_step=9).task_index == 5
    filler.unlink()
    states.save("run", client, 2, a_client_state(10))


def test_an_adapter_on_a_full_disk_leaves_the_one_before_and_no_half(disk):
    target = disk / "adapters" / "task-000"
    with _at_once(target) as folder:
        (folder / "README.md").write_text("whole")
    filler = fill(disk)
    with pytest.raises(OSError, match="No space left"), _at_once(target) as folder:
        _save({"a": np.zeros(2_000_000, np.float32)}, folder / "adapter.safetensors")
    assert [path.name for path in target.parent.iterdir()] == ["task-000"]
    assert (target / "README.md").read_text() == "whole"
    filler.unlink()


def test_a_disk_that_becomes_read_only_is_named_and_then_works_again(disk):
    store, blobs = impatient(disk / "runs.db"), BlobStore(disk / "blobs")
    run_id = new_run(store).run_id
    store.commit_round(run_id, a_round(run_id))
    store._sessions.engine.dispose()  # else the kernel refuses
    set_read_only(disk, on=True)
    try:
        with pytest.raises(StoreError, match=r"Read-only file system.*make it writable"):
            save_state(a_state(), blobs)
        with pytest.raises(StoreUnreachableError, match=r"(Make it|See that) .*its folder"):
            store.commit_round(run_id, a_round(run_id, 1))
    finally:
        set_read_only(disk, on=False)
    save_state(a_state(), blobs)
    assert store.commit_round(run_id, a_round(run_id, 1))


def test_a_data_directory_that_cannot_be_written_is_refused_at_the_start(disk):
    home = Home(folder=disk / "home", database_url=f"sqlite:///{disk / 'home' / 'runs.db'}")
    set_read_only(disk, on=True)
    with pytest.raises(StoreError, match=r"home cannot be written \(Read-only.*PERENNIAL_HOME"):
        home.store()


def test_doctor_holds_the_free_disk_against_what_runs_keep(home, monkeypatch):
    keeper = a_keeper(home)
    for step in range(4):
        commit(keeper, step)
    (disk,) = (finding for finding in examine(home) if finding["check"] == "disk")
    assert disk["ok"]
    assert "GB free; the largest run here keeps 0.01 GB" in disk["detail"]
    assert largest_run_bytes(home) == pytest.approx(2 * 3_200_000, rel=0.01)
    monkeypatch.setattr("orchestrator.doctor.largest_run_bytes", lambda _: 10**15)
    (disk,) = (finding for finding in examine(home) if finding["check"] == "disk")
    assert not disk["ok"]
    assert "1000000.0 GB wanted; the largest run here keeps" in disk["detail"]
    assert "perennial gc" in disk["detail"]


def test_a_database_that_another_process_locks_is_waited_for_and_can_be_read(tmp_path):
    path = tmp_path / "runs.db"
    store = impatient(path)
    run_id = new_run(store).run_id
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    assert store.get_run(run_id).run_id == run_id  # readers wait for no writer
    with pytest.raises(StoreUnreachableError, match=r"committing step 0.*is locked.*resume"):
        store.commit_round(run_id, a_round(run_id))
    other.execute("ROLLBACK")
    assert store.commit_round(run_id, a_round(run_id))
    other.close()


@pytest.mark.parametrize("then", ["removed", "replaced by another file"])
def test_a_database_whose_file_is_gone_is_not_written_into_the_void(then, tmp_path):
    path, aside = tmp_path / "runs.db", tmp_path / "aside.db"
    store = impatient(path)
    run_id = new_run(store).run_id
    store.commit_round(run_id, a_round(run_id))
    path.rename(aside)
    if then != "removed":
        open_store(f"sqlite:///{tmp_path / 'new.db'}")
        (tmp_path / "new.db").rename(path)
    with pytest.raises(StoreUnreachableError, match=f"was {then} while it was in use. Put it back"):
        store.commit_round(run_id, a_round(run_id, 1))
    with pytest.raises(StoreUnreachableError, match=then):
        store.rounds(run_id)
    assert path.exists() == (then != "removed")
    aside.replace(path)
    assert store.commit_round(run_id, a_round(run_id, 1))
    assert [r.step_index for r in impatient(path).rounds(run_id)] == [0, 1]


def test_a_file_that_is_no_database_is_named_with_what_to_do(tmp_path):
    path = tmp_path / "runs.db"
    path.write_bytes(b"shopping list\n" * 1000)
    with pytest.raises(
        StoreError, match=r"is not a database\. The file is no database: put a back"
    ):
        open_store(f"sqlite:///{path}")
    assert path.read_bytes().startswith(b"shopping")


def test_a_database_that_is_damaged_under_way_is_named_at_once(tmp_path):
    path = tmp_path / "runs.db"
    store = impatient(path)
    run_id = new_run(store).run_id
    for step in range(40):
        store.commit_round(run_id, a_round(run_id, step))
    with sqlite3.connect(path) as other:
        other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    other.close()
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xa5" * (size - 4096))
    again = impatient_without_looking(path)
    with pytest.raises(StoreDamagedError, match=r"malformed.*\.recover.*perennial resume"):
        again.rounds(run_id)


def impatient_without_looking(path: Path) -> SqlRunStore:
    return SqlRunStore(make_engine(f"sqlite:///{path}"), Patience(limit_seconds=0.3))


def test_a_database_without_our_tables_is_no_database_of_ours(tmp_path):
    sqlite3.connect(tmp_path / "other.db").execute("CREATE TABLE mine (a)").connection.close()
    with pytest.raises(StoreDamagedError, match=r"no such table.*put the right one in its place"):
        impatient_without_looking(tmp_path / "other.db").list_runs()


def test_trouble_is_told_with_place_room_and_remedy(tmp_path):
    full = OSError(28, "No space left on device", str(tmp_path / "not" / "there"))
    assert f"No space left on device at {tmp_path}/not/there (" in in_words(full, Path("/"))
    assert "`perennial gc` finds some), then resume" in in_words(full, Path("/"))
    assert in_words(OSError("odd"), tmp_path).startswith(f"odd at {tmp_path} (")
