"""States on disk: the same bits back, and damage named and stepped over."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from orchestrator.checkpoint import load_state, restore, save_state
from orchestrator.store.blobs import BlobStore
from strategies.errors import BlobError, StoreError
from strategies.types import ClientId, GlobalState, Holding, ParamKey
from tests.contract.test_run_store import a_round, new_run


def a_state(step: int = 3) -> GlobalState:
    tensors = {
        ParamKey("a.b|c", "lora_A"): np.array([[np.nan, -0.0, 1e-45]], dtype=np.float32),
        ParamKey("head", "weight"): np.arange(6, dtype=np.float16).reshape(2, 3),
    }
    return GlobalState(
        step_index=step,
        tensors=tensors,
        memories={"rank": {"m|n": np.array(2**60, dtype=np.int64), "v": np.zeros((0, 2))}},
        evidence={ClientId("client-3"): {ParamKey("a.b", "drift"): np.array(0.5)}},
        changed={"head|weight": 2},
        holdings={ClientId("client-0"): Holding(step=2, ranks={"head|weight": 0}, own=("a|b",))},
    )


@pytest.fixture
def blobs(tmp_path):
    return BlobStore(tmp_path / "blobs")


@pytest.mark.parametrize("apart", [2**20, 1])
def test_states_survive_bit_for_bit(apart, blobs, monkeypatch):
    monkeypatch.setattr("orchestrator.checkpoint._APART_BYTES", apart)
    state = a_state()
    again = load_state(save_state(state, blobs), blobs)
    for name in ("step_index", "changed", "holdings"):
        assert getattr(again, name) == getattr(state, name)
    pairs = [(state.tensors, again.tensors), (state.memories["rank"], again.memories["rank"])]
    pairs += [(state.evidence[c], again.evidence[c]) for c in state.evidence]
    for before, after in pairs:
        assert before.keys() == after.keys()
        for key, value in before.items():
            assert after[key].dtype == value.dtype
            assert after[key].shape == value.shape
            assert after[key].tobytes() == value.tobytes()


def test_equal_states_have_equal_digests_whatever_their_order(blobs):
    state = a_state()
    turned = replace(
        state,
        tensors=dict(reversed(state.tensors.items())),
        memories={"rank": dict(reversed(state.memories["rank"].items()))},
    )
    assert save_state(turned, blobs) == save_state(state, blobs)


@pytest.mark.parametrize("cut", [0, 50, None])
def test_what_is_no_state_is_refused(cut, blobs):
    whole = blobs.get(save_state(a_state(), blobs))
    with pytest.raises(BlobError, match="no checkpoint"):
        load_state(blobs.put(b"x" * 100 if cut is None else whole[:cut]), blobs)


def large_state(step: int) -> GlobalState:
    """Three megabytes that no step changes."""
    sums = np.arange(400_000, dtype=np.float64)
    return replace(a_state(step), memories={"head": {"gram": sums}})


def size_of(blobs: BlobStore) -> int:
    return sum(path.stat().st_size for path in blobs.folder.rglob("*") if path.is_file())


def test_what_a_step_leaves_alone_is_not_written_again(blobs):
    save_state(large_state(1), blobs)
    first = size_of(blobs)
    digest = save_state(large_state(2), blobs)
    assert first > 3_000_000
    assert size_of(blobs) - first < 10_000
    again = load_state(digest, blobs)
    np.testing.assert_array_equal(
        again.memories["head"]["gram"], large_state(2).memories["head"]["gram"]
    )


def test_a_part_that_is_missing_makes_the_state_unreadable(blobs):
    digest = save_state(large_state(1), blobs)
    (part,) = (p for p in blobs.folder.rglob("*") if p.is_file() and p.stat().st_size > 3_000_000)
    part.unlink()
    with pytest.raises(BlobError, match="cannot be read"):
        load_state(digest, blobs)


def test_blobs_are_found_by_content_and_checked(tmp_path):
    blobs = BlobStore(tmp_path)
    digest = blobs.put(b"hello")
    assert blobs.put(b"hello") == digest
    assert blobs.get(digest) == b"hello"
    assert list(tmp_path.rglob(".*")) == []
    blobs.path(digest).write_bytes(b"hellO")
    with pytest.raises(BlobError, match=f"{blobs.path(digest)} is damaged"):
        blobs.get(digest)
    blobs.delete(digest)
    assert not blobs.has(digest)
    with pytest.raises(BlobError, match="No such file"):
        blobs.get(digest)


def test_a_blob_that_cannot_be_written_says_where(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=rf"of 1 bytes cannot.*{tmp_path}/file.*then resume"):
        BlobStore(tmp_path / "file").put(b"x")


@pytest.fixture
def committed(home):
    """A run with two committed steps."""
    store, blobs = home.store(), home.blobs()
    run_id = new_run(store).run_id
    digests = []
    for step in range(2):
        digests.append(save_state(a_state(step + 1), blobs))
        store.commit_round(run_id, a_round(run_id, step, checkpoint=digests[-1]))
    return store, blobs, run_id, digests


def test_restore_takes_the_newest_state(committed):
    store, blobs, run_id, digests = committed
    state, digest = restore(run_id, store, blobs)
    assert (state.step_index, digest) == (2, digests[1])


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(committed):
    store, blobs, run_id, digests = committed
    blobs.path(digests[1]).write_bytes(b"rot")
    state, digest = restore(run_id, store, blobs)
    assert (state.step_index, digest) == (1, digests[0])
    damaged = [e.message for e in store.events(run_id) if e.kind == "checkpoint-damaged"]
    assert str(blobs.path(digests[1])) in damaged[0]
    assert [r.step_index for r in store.rounds(run_id)] == [0]


def test_all_checkpoints_damaged_is_an_error(committed):
    store, blobs, run_id, digests = committed
    for digest in digests:
        blobs.delete(digest)
    with pytest.raises(BlobError, match="none of the 2 checkpoints"):
        restore(run_id, store, blobs)


def test_no_checkpoint_is_a_fresh_start(home):
    store = home.store()
    assert restore(new_run(store).run_id, store, home.blobs()) is None
