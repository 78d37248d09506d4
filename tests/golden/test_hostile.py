"""Hostile clients in whole runs: what the robust strategies save, and that they are named."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from benchmarks.hostile import ATTACKS, CLEAN, drawn, hostile, launch, table
from orchestrator.checkpoint import load_state
from orchestrator.conduct import submit
from orchestrator.store.base import RunStatus
from strategies.types import ClientId, ParamKey, Update, client_ids
from strategies.wire import decode_result, encode_result
from tests.conftest import tiny_config

CLIENTS = 7
ROBUST = {
    "norm-clipping": {"strategy__screening": {"name": "norm-clipping"}},
    "multi-krum": {
        "strategy__screening": {"name": "multi-krum", "hostile": 0.28},
        "federation__quarantine": {"faults": 2, "rounds": 9},
    },
    "trimmed-mean": {"strategy__aggregation": {"name": "trimmed-mean"}},
    "coordinate-median": {"strategy__aggregation": {"name": "coordinate-median"}},
}


def largest(home, changes, attack):
    """The largest value of the adapter and the head after a run with 2 of 7 clients hostile."""
    config = tiny_config(
        **changes,
        federation__clients=CLIENTS,
        partition__alpha=5.0,
        learning__local_steps=2,
        stream__tasks=[{"name": "all", "labels": list("0123456789")}],
    )
    run_id, store = submit(config, home), home.store()
    assert launch(run_id, config, home, attack=attack, share=0.28) is RunStatus.COMPLETED
    state = load_state(store.last_checkpoint(run_id), home.blobs())
    assert all(np.isfinite(value).all() for value in state.tensors.values())
    return max(float(np.abs(value).max()) for value in state.tensors.values()), run_id


@pytest.mark.parametrize("name", ROBUST)
def test_updates_scaled_a_thousand_times_do_not_carry_the_model_away(name, home):
    clean, _ = largest(home, ROBUST[name], CLEAN)
    attacked, run_id = largest(home, ROBUST[name], "scaled")
    assert attacked < 3 * clean
    if name == "multi-krum":
        events = [e for e in home.store().events(run_id) if e.kind == "client-quarantined"]
        named = {event.data["client_id"] for event in events}
        assert named == drawn(client_ids(CLIENTS), 0.28, 0)


def test_without_protection_they_do(home):
    clean, _ = largest(home, {}, CLEAN)
    attacked, _ = largest(home, {}, "scaled")
    assert attacked > 10 * clean


def test_an_attack_changes_the_updates_alone():
    key = ParamKey("g", "weight")
    update = Update(
        assignment_id="a", client_id=ClientId("c"), plan_hash="h",
        delta={key: np.array([[3.0, 4.0]], "f4")}, num_examples={"g": np.array(2)},
    )  # fmt: skip
    found = {
        name: decode_result(hostile(lambda _: encode_result(update), attack, 0)(b""))
        for name, attack in ATTACKS.items()
    }
    np.testing.assert_array_equal(found["scaled"].delta[key], [[3000.0, 4000.0]])
    np.testing.assert_array_equal(found["sign-flipped"].delta[key], [[-3.0, -4.0]])
    np.testing.assert_array_equal(found["sign-flipped-5"].delta[key], [[-15.0, -20.0]])
    assert np.isnan(found["nan"].delta[key]).all()
    assert np.linalg.norm(found["random"].delta[key]) == pytest.approx(50.0, rel=1e-6)
    assert all(answer.num_examples == update.num_examples for answer in found.values())
    empty = encode_result(Update(assignment_id="a", client_id=ClientId("c"), plan_hash="h",
                                 delta={}, num_examples={}))  # fmt: skip
    assert hostile(lambda _: empty, ATTACKS["nan"], 0)(b"") == empty


def test_hostile_clients_are_drawn_by_the_seed():
    clients = client_ids(20)
    groups = [drawn(clients, 0.3, seed) for seed in range(5)]
    assert all(len(group) == 6 for group in groups)
    assert len(set(groups)) == 5
    assert groups[0] == drawn(clients, 0.3, 0)
    assert not partial(drawn, clients, 0.0)(0)


def test_the_table_by_hand():
    run = {"acc": 0.9}
    found = {
        "exact": {"clean": [run, {"acc": 0.7}], "scaled": [{"acc": 0.1}]},
        "krum": {"clean": [{"acc": 0.7}], "scaled": [{"acc": None, "ended": "why"}]},
    }
    shown = table(found)
    assert shown["exact"]["scaled"]["points_from_own_clean"] == pytest.approx(-70)
    assert shown["krum"]["clean"]["points_from_clean_exact"] == pytest.approx(-10)
    assert shown["krum"]["scaled"] == {
        "acc": None, "points_from_own_clean": None, "points_from_clean_exact": None
    }  # fmt: skip
