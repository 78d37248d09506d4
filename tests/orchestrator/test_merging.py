"""Where the merger has its say: after rounds, at a task's end, and after the probe it asks for."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from orchestrator.federation import initial_state
from orchestrator.fleet import Fleet
from orchestrator.merging import opened
from orchestrator.outgoing import Sender
from orchestrator.planner import plan_step
from orchestrator.plans import MERGING
from orchestrator.rounds import close_step
from orchestrator.schedule import schedule
from orchestrator.transport import failure
from strategies.errors import ConfigError
from strategies.lora import is_merged, keys_of, merged_keys
from strategies.merging.atlas import coefficients_of
from strategies.merging.coefficients import CURVATURE, SUMS
from strategies.types import HEAD, FailureReason, LowRank, ParamKey, Reply
from tests.orchestrator.builders import QUERY, VALUE, a_config, a_federation, an_update

FEDERATION = a_federation()


def configured(name: str, **params):
    return a_config(strategy__merging={"name": name, **params})


def steps_of(config):
    return schedule(config, 2)


def run(config, until: int, fills=(0.01, 0.01, 0.01)):
    """States and outcomes of the steps before ``until``; clients move all values by ``fills``."""
    state, outcomes = initial_state(config, FEDERATION), []
    while state.step_index < until:
        state = opened(state, config, FEDERATION)
        plan = plan_step("run", config, FEDERATION, state, Fleet())
        outcome = close_step(
            state, plan, [answer(plan, *asked) for asked in zip(plan.orders, fills, strict=True)],
            config=config, federation=FEDERATION,
        )  # fmt: skip
        state = outcome.state
        outcomes.append(outcome)
    return state, outcomes


def answer(plan, order, fill) -> Reply:
    update = an_update(order, FEDERATION, fill)
    if plan.step.kind != "train":
        update = dataclasses.replace(update, delta={}, metrics={})
    if plan.step.kind == "probe":
        rng = np.random.default_rng(0)
        sketch = {
            ParamKey(group, "input-spectrum"): rng.normal(size=(2, 7)).astype(np.float32)
            for group in (QUERY, VALUE)
        }
        update = dataclasses.replace(update, sketches=sketch)
    return Reply(result=update, bytes_down=1, bytes_up=1, seconds=0.1)


def test_a_task_closes_with_its_last_round_or_with_the_mergers_probe():
    plain = [(s.kind, s.closes) for s in steps_of(configured("wise-ft"))]
    a_task = [("train", False), ("train", True), ("evaluate", False)]
    assert plain == [("evaluate", False), *a_task, *a_task]
    asked = [(s.kind, s.round_index, s.closes) for s in steps_of(configured("fot"))][1:5]
    assert asked == [
        ("train", 0, False),
        ("train", 1, False),
        ("probe", 2, True),
        ("evaluate", 0, False),
    ]


def test_a_mergers_probe_asks_a_cohort_that_holds_the_task():
    config = configured("fot", batches=3, components=5)
    state, _ = run(config, 3)
    plan = plan_step("run", config, FEDERATION, state, Fleet())
    probe = plan.orders[0].assignment.probe
    assert (probe.tasks, probe.statistics) == ((0,), ("input-spectrum",))
    assert (probe.batches, probe.max_rank) == (3, 5)


def test_fot_projects_folds_and_leaves_no_sketch_behind():
    config = configured("fot", energy=0.5)
    state, _ = run(config, 4)
    assert {key.text for key in state.tensors if is_merged(key)} == {
        key.text for group in (QUERY, VALUE) for key in merged_keys(group, 0)
    }
    basis = state.memories[MERGING][f"{QUERY}|basis"]
    later, _ = run(config, 6)
    assert not any(
        key.part == "input-spectrum" for found in later.evidence.values() for key in found
    )
    a = later.tensors[keys_of(QUERY)[0]]
    assert later.tensors[keys_of(QUERY)[1]].any()
    np.testing.assert_allclose(a @ basis, 0, atol=1e-6)


def test_model_stock_makes_no_shorter_step_where_clients_agree_and_counts_them():
    agreeing, _ = run(configured("model-stock"), 2)
    plain, _ = run(configured("none"), 2)
    for key, value in plain.tensors.items():
        np.testing.assert_allclose(agreeing.tensors[key], value, atol=1e-6)


def test_model_stock_makes_a_shorter_step_where_clients_do_not():
    apart = (0.02, -0.01, 0.01)
    shorter, _ = run(configured("model-stock"), 2, apart)
    plain, _ = run(configured("none"), 2, apart)
    key_b = keys_of(QUERY)[1]
    assert 0 <= np.abs(shorter.tensors[key_b]).max() < 0.5 * np.abs(plain.tensors[key_b]).max()


def test_every_task_starts_from_the_base_with_task_vectors():
    config = configured("task-vectors", coefficient=0.5)
    state, _ = run(config, 4)  # the first task is learnt and scored
    key = merged_keys(QUERY, 0)[0]
    assert key in state.tensors
    started = opened(state, config, FEDERATION)
    assert not any(is_merged(k) for k in started.tensors)
    assert ParamKey(HEAD, "weight") in started.tensors
    middle, _ = run(config, 5)
    assert opened(middle, config, FEDERATION) is middle
    assert not any(is_merged(k) for k in middle.tensors)
    whole, _ = run(config, 6)
    assert whole.changed[key.text] == 6
    assert merged_keys(QUERY, 1)[0] in whole.tensors
    end, _ = run(config, 7)
    assert opened(end, config, FEDERATION) is end


def recalling(**params):
    return a_config(
        strategy__merging={"name": "atlas", **params}, learning__methods=[{"name": "er"}]
    )


def test_a_refining_merger_looks_after_the_task_has_closed():
    steps = [(s.kind, s.closes, s.refines) for s in steps_of(recalling(probes=2))][1:6]
    assert steps == [
        ("train", False, False),
        ("train", True, False),
        ("probe", False, True),
        ("probe", False, True),
        ("evaluate", False, False),
    ]


def test_the_same_clients_look_at_the_same_examples_whatever_they_have_of_the_new_task():
    federation = a_federation(((4, 0), (0, 4), (4, 0)))
    config, plans = recalling(), []
    state = initial_state(config, federation)
    for index in (9, 10, 11):  # the second task's looks
        at = dataclasses.replace(state, step_index=index)
        plans.append(plan_step("run", config, federation, at, Fleet()))
    assert [plan.step.kind for plan in plans] == ["probe"] * 3
    for plan in plans:
        asked = [order.assignment for order in plan.orders]
        assert [a.client_id for a in asked] == ["client-0", "client-1", "client-2"]
        assert [a.seed for a in asked] == [o.assignment.seed for o in plans[0].orders]
        assert all(a.probe.remembered and a.probe.tasks == (1,) for a in asked)


def test_looks_without_an_answer_leave_equal_coefficients():
    config, fixed = recalling(), configured("task-vectors")
    state, _ = run(config, 3)
    whole, _ = run(fixed, 3)
    while state.step_index < 6:
        plan = plan_step("run", config, FEDERATION, state, Fleet())
        lost = [
            Reply(
                result=failure(order, FailureReason.NO_EXAMPLES, "nothing"),
                bytes_down=1, bytes_up=1, seconds=0.1,
            )
            for order in plan.orders
        ]  # fmt: skip
        outcome = close_step(state, plan, lost, config=config, federation=FEDERATION)
        state = outcome.state
    assert state.tensors.keys() == whole.tensors.keys()
    for key, value in whole.tensors.items():
        np.testing.assert_array_equal(state.tensors[key], value)


def curvature(order, columns=1, rows=SUMS + 2):
    """An answer about the two pairs a model has after its first task."""
    update = an_update(order, FEDERATION)
    sums = np.eye(rows, columns, -SUMS, dtype=np.float32) + 1
    sketch = {ParamKey(group, CURVATURE): sums for group in (QUERY, VALUE)}
    return dataclasses.replace(update, delta={}, metrics={}, sketches=sketch)


def test_answers_about_pairs_are_used_once_and_must_have_a_column_for_each():
    config = recalling()
    state, _ = run(config, 3)
    plan = plan_step("run", config, FEDERATION, state, Fleet())
    bad = [curvature(plan.orders[0], columns=2), curvature(plan.orders[1], rows=SUMS + 1)]
    updates = [*bad, curvature(plan.orders[2])]
    replies = [Reply(result=u, bytes_down=1, bytes_up=1, seconds=0.1) for u in updates]
    outcome = close_step(state, plan, replies, config=config, federation=FEDERATION)
    assert [r.failure_reason for r in outcome.replies] == ["wrong-shape", "wrong-shape", None]
    assert "expected (5, 1)" in outcome.replies[0].failure_detail
    assert set(coefficients_of(outcome.state.memories[MERGING]).values()) != {0.5}
    assert not any(k.part == CURVATURE for f in outcome.state.evidence.values() for k in f)


def test_learning_on_memories_needs_somebody_who_remembers():
    with pytest.raises(ConfigError, match=r"fills the memory") as caught:
        a_config(strategy__merging={"name": "atlas"}, learning__methods=[{"name": "finetune"}])
    assert "strategy.merging = 'atlas'" in str(caught.value)


def test_what_a_merger_cuts_is_on_record():
    config = a_config(
        strategy__merging={"name": "wise-ft", "share": 0.5},
        strategy__rank={"name": "fixed", "rank": 1},
        strategy__aggregation={"name": "fedavg"},
    )
    _, outcomes = run(config, 6)
    assert not any(outcome.truncation for outcome in outcomes[:5])
    assert set(outcomes[5].truncation) == {QUERY, VALUE}


def test_a_redrawn_factor_is_sent_and_not_drawn():
    config = configured("olora")
    before, _ = run(config, 2)
    state, _ = run(config, 3)
    key_a, key_b = keys_of(QUERY)
    assert not np.array_equal(state.tensors[key_a], before.tensors[key_a])
    assert state.changed[key_a.text] == state.changed[key_b.text] == 3
    client = FEDERATION.clients[0].client_id
    parcel = Sender(state=state, downlink=()).parcel(client, {QUERY: LowRank(rank=2)}, {})
    for key in (key_a, key_b, *merged_keys(QUERY, 0), *merged_keys(VALUE, 0)):
        np.testing.assert_array_equal(parcel.tensors[key], state.tensors[key])
    assert not set(parcel.held.ranks) & {key.text for key in keys_of(QUERY)}
    assert ParamKey(HEAD, "weight") in parcel.tensors


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"learning__mode": "joint"}, "has one task only"),
        ({"strategy__aggregation": {"name": "flora"}}, "frozen pairs"),
        ({"strategy__aggregation": {"name": "fedsa"}}, "with the clients"),
        ({"strategy__layer_selection": {"name": "fedselect"}}, "with the clients"),
        ({"strategy__rank": {"name": "dense"}}, "no adapters to fold"),
        ({"strategy__rank": {"name": "spectral"}}, "spectrum"),
    ],
)
def test_what_does_not_go_together_is_named(changes, words):
    with pytest.raises(ConfigError, match=words):
        a_config(strategy__merging={"name": "fot"}, **changes)
    a_config(**changes)


def test_the_client_method_needs_frozen_adapters():
    methods = {"learning__methods": [{"name": "olora"}]}
    with pytest.raises(ConfigError, match=r"learning\.methods\.0\.name"):
        a_config(**methods)
    a_config(strategy__merging={"name": "fot"}, **methods)


def test_dense_training_goes_with_a_merging_that_folds_nothing():
    a_config(strategy__merging={"name": "wise-ft"}, strategy__rank={"name": "dense"})
