"""States on disk: the same bits back, and damage named and stepped over."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from orchestrator.checkpoint import dump_state, load_state, restore
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


def test_states_survive_bit_for_bit():
    state = a_state()
    again = load_state(dump_state(state))
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


def test_equal_states_have_equal_bytes_whatever_their_order():
    state = a_state()
    turned = replace(
        state,
        tensors=dict(reversed(state.tensors.items())),
        memories={"rank": dict(reversed(state.memories["rank"].items()))},
    )
    assert dump_state(turned) == dump_state(state)


@pytest.mark.parametrize("data", [b"", b"x" * 100, dump_state(a_state())[:50]])
def test_what_is_no_state_is_refused(data):
    with pytest.raises(BlobError, match="no checkpoint"):
        load_state(data)


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
    with pytest.raises(StoreError, match="PERENNIAL_HOME"):
        BlobStore(tmp_path / "file").put(b"x")


@pytest.fixture
def committed(home):
    """A run with two committed steps."""
    store, blobs = home.store(), home.blobs()
    run_id = new_run(store).run_id
    digests = []
    for step in range(2):
        digests.append(blobs.put(dump_state(a_state(step + 1))))
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
