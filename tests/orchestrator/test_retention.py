"""A run keeps its newest checkpoints and no more, whoever shares their blobs, crashed or not."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from orchestrator.checkpoint import blobs_of, load_state, restore
from orchestrator.home import Home
from orchestrator.retention import Holds, Keeper
from orchestrator.store import SqlRunStore
from orchestrator.store.blobs import BlobStore
from strategies.errors import BlobError, StoreError
from strategies.types import GlobalState
from tests.contract.test_run_store import a_round, new_run
from tests.orchestrator.test_checkpoint import a_state, size_of


def a_large_state(step: int, changed_at: int = 0) -> GlobalState:
    """Three megabytes that changed last in step ``changed_at``, and a little that always does."""
    sums = np.full(400_000, changed_at, dtype=np.float64)
    return replace(a_state(step), memories={"head": {"gram": sums}})


@pytest.fixture
def blobs(home: Home) -> BlobStore:
    return home.blobs()


def a_keeper(home: Home, keep: int = 3) -> Keeper:
    store = home.store()
    made = Keeper(run_id=new_run(store).run_id, store=store, blobs=home.blobs(), keep=keep)
    made.begin()
    return made


def commit(keeper: Keeper, step: int, state: GlobalState | None = None) -> str:
    checkpoint = keeper.save(state or a_large_state(step + 1))
    record = a_round(keeper.run_id, step, checkpoint=checkpoint)
    assert keeper.store.commit_round(keeper.run_id, record)
    keeper.tidy()
    return checkpoint


def readable(digest: str, blobs: BlobStore) -> bool:
    try:
        load_state(digest, blobs)
    except BlobError:
        return False
    return True


def test_a_long_run_keeps_the_newest_few_and_its_room_is_bounded(home, blobs):
    keeper, sizes, made = a_keeper(home), [], []
    for step in range(12):
        made.append(commit(keeper, step, a_large_state(step + 1, changed_at=step)))
        sizes.append(size_of(blobs))
    assert [readable(digest, blobs) for digest in made] == [False] * 9 + [True] * 3
    assert sizes[-1] == pytest.approx(sizes[2], rel=0.01)
    assert keeper.store.checkpoints(keeper.run_id) == made[::-1]  # the record stays whole
    assert restore(keeper.run_id, keeper.store, blobs)[0].step_index == 12


def test_what_a_newer_checkpoint_shares_with_an_older_one_stays(home, blobs):
    keeper = a_keeper(home, keep=1)
    made = [commit(keeper, step) for step in range(5)]
    assert [readable(digest, blobs) for digest in made] == [False] * 4 + [True]
    assert len(list(blobs.stored())) == len(blobs_of(made[-1], blobs)) == 2


def test_the_one_before_serves_when_the_newest_is_damaged_and_is_written_anew(home, blobs):
    keeper = a_keeper(home)
    made = [commit(keeper, step) for step in range(5)]
    blobs.path(made[-1]).write_bytes(b"rot")
    state, digest = restore(keeper.run_id, keeper.store, blobs)
    assert (state.step_index, digest) == (4, made[-2])
    keeper.begin()
    assert commit(keeper, 4) == made[-1]  # the same state as before, under the same name
    assert readable(made[-1], blobs)


def test_what_another_run_needs_stays(home, blobs):
    """Equal runs have equal checkpoints; one of them is far behind."""
    ahead, behind = a_keeper(home, keep=1), a_keeper(home, keep=1)
    theirs = commit(behind, 0)
    ours = [commit(ahead, step) for step in range(4)]
    assert ours[0] == theirs
    assert readable(theirs, blobs)
    commit(behind, 1)
    assert not readable(theirs, blobs)


def test_what_a_run_of_another_database_needs_stays(home, tmp_path):
    """The data directory is one, the databases are two, as after moving to PostgreSQL."""
    other = Home(folder=home.folder, database_url=f"sqlite:///{tmp_path / 'other.db'}")
    theirs = commit(a_keeper(other, keep=1), 0)
    ours = a_keeper(home, keep=1)
    for step in range(3):
        commit(ours, step)
    assert readable(theirs, home.blobs())


def test_what_was_begun_before_there_were_holds_is_held(home, blobs):
    from orchestrator.checkpoint import save_state

    store = home.store()
    old = new_run(store).run_id
    store.commit_round(old, a_round(old, checkpoint=save_state(a_large_state(1), blobs)))
    keeper = a_keeper(home, keep=1)
    assert commit(keeper, 0) == store.last_checkpoint(old)
    commit(keeper, 1)
    assert readable(store.last_checkpoint(old), blobs)


class Crash(BaseException):
    """The process ends here."""


def crash(*given: object, **_: object) -> None:
    """Ends the process; for files, at those that say what is held."""
    if isinstance(given[0], Path) and "held" not in given[0].parts:
        UNLINK(given[0], missing_ok=True)
        return
    raise Crash


UNLINK = Path.unlink


CRASHES = {
    "before the hold": (Holds, "add"),
    "before the commit": (SqlRunStore, "commit_round"),
    "after the commit": (Keeper, "tidy"),
    "before a blob is deleted": (BlobStore, "delete"),
    "before the hold is let go": (Path, "unlink"),
}


@pytest.mark.parametrize("where", CRASHES)
def test_whenever_it_is_killed_the_newest_commits_are_there_and_the_rest_goes(
    where, home, blobs, monkeypatch
):
    keeper = a_keeper(home, keep=2)
    for step in range(3):
        commit(keeper, step, a_large_state(step + 1, changed_at=step))
    with monkeypatch.context() as patch:
        patch.setattr(*CRASHES[where], crash)
        with pytest.raises(Crash):
            commit(keeper, 3, a_large_state(4, changed_at=3))
    state, _ = restore(keeper.run_id, keeper.store, blobs)
    committed = keeper.store.checkpoints(keeper.run_id)
    assert state.step_index == len(committed) >= 3
    assert readable(committed[1], blobs)
    keeper.begin()
    for step in range(len(committed), 6):
        commit(keeper, step, a_large_state(step + 1, changed_at=step))
    newest = keeper.store.checkpoints(keeper.run_id)[:2]
    assert Holds(blobs).of(keeper.run_id) == set(newest)
    left = {path.name for path in blobs.stored()}
    needed = set().union(*(blobs_of(digest, blobs) for digest in newest))
    # A blob that was stored and never held is `perennial gc`'s; all else is gone.
    assert left - needed <= ({*left} if where == "before the hold" else set())
    assert needed <= left


def test_an_uncommitted_checkpoint_of_whoever_leads_by_now_is_left_alone(home, blobs):
    """One that was paused after its commit wakes up and tidies while the next one stores."""
    slow = a_keeper(home, keep=1)
    commit(slow, 0)
    checkpoint = slow.save(a_large_state(2))
    fast = replace(slow)
    theirs = fast.save(a_large_state(3, changed_at=9))
    slow.store.commit_round(slow.run_id, a_round(slow.run_id, 1, checkpoint=checkpoint))
    slow.tidy()
    assert readable(theirs, blobs)
    assert theirs in Holds(blobs).of(slow.run_id)


def test_what_is_found_stored_does_not_go_before_it_is_held(home, blobs, monkeypatch):
    """Another run lets go of the same state in just that moment, or rather has to wait."""
    ours, theirs = a_keeper(home, keep=1), a_keeper(home, keep=1)
    shared = commit(theirs, 0)
    add = Holds.add

    def meanwhile(holds: Holds, run_id: str, checkpoint: str) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(Holds, "add", add)
            done = theirs.save(a_large_state(2))
            theirs.store.commit_round(theirs.run_id, a_round(theirs.run_id, 1, checkpoint=done))
            theirs.tidy()
        add(holds, run_id, checkpoint)

    with monkeypatch.context() as patch:
        patch.setattr(Holds, "add", meanwhile)
        assert ours.save(a_large_state(1)) == shared
    assert readable(shared, blobs)
    theirs.tidy()
    assert Holds(blobs).of(theirs.run_id).isdisjoint({shared})
    assert readable(shared, blobs)


def test_storing_and_sweeping_at_once_loses_nothing(home, blobs):
    """Two runs store the same states over and over; each sweeps what it has done with."""
    keepers, barrier = [a_keeper(home, keep=1) for _ in range(2)], threading.Barrier(2)

    def work(keeper: Keeper) -> list[bool]:
        found = []
        barrier.wait()
        for step in range(30):
            checkpoint = commit(keeper, step, a_large_state(step % 3, changed_at=step % 3))
            found.append(readable(checkpoint, blobs))
        return found

    with ThreadPoolExecutor(2) as pool:
        assert all(all(found) for found in pool.map(work, keepers))


def test_nobody_sweeps_while_somebody_writes(blobs):
    with blobs.writing(), blobs.writing(), blobs.sweeping() as alone:
        assert not alone
    with blobs.sweeping() as alone, blobs.sweeping() as another:
        assert (alone, another) == (True, False)


def test_who_waits_too_long_for_a_sweep_says_so(blobs, monkeypatch):
    monkeypatch.setattr("orchestrator.store.blobs._LOCK_SECONDS", 0.1)
    with blobs.sweeping(), pytest.raises(StoreError, match="is being cleaned up"), blobs.writing():
        pass


def test_a_run_does_not_end_because_an_old_checkpoint_cannot_go(home, blobs, monkeypatch, caplog):
    keeper = a_keeper(home, keep=1)
    commit(keeper, 0)

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(BlobStore, "delete", refuse)
        commit(keeper, 1)
    assert "stay for now" in caplog.text
    commit(keeper, 2)
    assert len(list(blobs.stored())) == 2
