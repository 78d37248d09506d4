"""A state that goes on and the same one read back are alike in everything, order included."""

from __future__ import annotations

import numpy as np

from orchestrator.checkpoint import load_state, ordered, save_state
from orchestrator.store.blobs import BlobStore
from strategies.types import ClientId, GlobalState, GroupName, Holding, ParamKey

NAMES = ("z", "layers.10", "a", "layers.9")


def a_state() -> GlobalState:
    tensors = {ParamKey(GroupName(name), "weight"): np.ones(2, np.float32) for name in NAMES}
    held = Holding(step=1, ranks=dict.fromkeys(NAMES, 2), own=())
    return GlobalState(
        step_index=3,
        tensors=tensors,
        memories={kind: dict.fromkeys(NAMES, np.zeros(1)) for kind in NAMES},
        evidence={ClientId(name): tensors for name in NAMES},
        changed=dict.fromkeys(NAMES, 1),
        holdings={ClientId(name): held for name in NAMES},
    )


def orders(state: GlobalState):
    return [
        list(state.tensors),
        [(kind, list(held)) for kind, held in state.memories.items()],
        [(client, list(told)) for client, told in state.evidence.items()],
        list(state.changed),
        [(client, list(held.ranks)) for client, held in state.holdings.items()],
    ]


def test_a_state_read_back_has_the_order_of_the_one_that_was_kept(tmp_path):
    state, blobs = ordered(a_state()), BlobStore(tmp_path)
    assert orders(load_state(save_state(state, blobs), blobs)) == orders(state)
    assert orders(state) != orders(a_state())
    assert save_state(state, blobs) == save_state(a_state(), blobs)
