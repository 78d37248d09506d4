"""Plans are pure: same state, same plan, whoever looks and in whatever order clients came."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from orchestrator.federation import agree, initial_state
from orchestrator.fleet import Fleet
from orchestrator.planner import plan_step
from orchestrator.recall import RECALL
from orchestrator.schedule import schedule
from strategies.errors import TransportError
from strategies.lora import factors_of, keys_of
from strategies.types import HEAD, ClientProfile, Dense, LowRank
from tests.orchestrator.builders import QUERY, VALUE, a_config, a_federation


def plan_at(step_index: int, config=None, federation=None):
    config, federation = config or a_config(), federation or a_federation()
    state = dataclasses.replace(initial_state(config, federation), step_index=step_index)
    return plan_step("run", config, federation, state, Fleet())


def test_schedule_scores_before_and_after_every_task():
    steps = schedule(a_config(), 2)
    kinds = [(s.kind, s.task_index, s.round_index) for s in steps]
    assert kinds == [
        ("evaluate", -1, 0),
        ("train", 0, 0),
        ("train", 0, 1),
        ("evaluate", 0, 0),
        ("train", 1, 0),
        ("train", 1, 1),
        ("evaluate", 1, 0),
    ]
    assert steps[5].seen == (0, 1)


def test_joint_trains_everything_for_as_many_rounds():
    steps = schedule(a_config(learning__mode="joint"), 2)
    training = [s for s in steps if s.kind == "train"]
    assert len(training) == 4
    assert all(s.tasks == (0, 1) for s in training)


def test_an_evaluation_names_the_release_to_compare_with():
    config, federation = a_config(), a_federation()
    state = dataclasses.replace(initial_state(config, federation), step_index=6)
    plan = plan_step("run", config, federation, state, Fleet(), release=3)
    assert {
        (o.assignment.evaluation.release, o.assignment.evaluation.keep) for o in plan.orders
    } == {(3, True)}
    untrained = plan_at(0).orders[0].assignment.evaluation
    assert (untrained.release, untrained.keep) == (None, False)


def test_there_is_no_plan_after_the_last_step():
    assert plan_at(7) is None


def test_a_training_order_trains_adapters_and_the_head():
    order = plan_at(1).orders[0]
    assert order.assignment.groups[QUERY] == LowRank(rank=2)
    assert order.assignment.groups[HEAD] == Dense()
    assert order.assignment.held.ranks == {
        key.text: 2 for name in (QUERY, VALUE) for key in keys_of(name)
    }


def test_a_replay_round_steps_at_its_own_rate():
    rounds = {"name": "fpf", "steps": 3, "rate": 0.25, "share": 1.0}
    config = a_config(replay__rounds=rounds, learning__methods=[{"name": "er"}])
    federation = a_federation()
    moved = {RECALL: {f"drift|{HEAD}": np.array([1.0, 1.0])}}
    state = dataclasses.replace(initial_state(config, federation), step_index=3, memories=moved)
    work = plan_step("run", config, federation, state, Fleet()).orders[0].assignment.work
    assert (work.source, work.steps) == ("memory", 3)
    assert work.optimization.learning_rate == config.learning.learning_rate / 4
    assert work.optimization.head_learning_rate == config.learning.head_learning_rate / 4


def test_evaluation_sends_no_empty_adapters():
    assert plan_at(0).orders[0].tensors == {}


def test_plans_do_not_depend_on_the_order_of_profiles():
    federation = a_federation()
    other = agree(federation.clients[::-1])
    assert [o.assignment for o in plan_at(1).orders] == [
        o.assignment for o in plan_at(1, federation=other).orders
    ]


def test_cohorts_differ_by_round_and_stay_sorted():
    config = a_config(federation__clients=3, federation__cohort=2, learning__rounds_per_task=30)
    cohorts = [
        tuple(o.assignment.client_id for o in plan_at(i, config).orders) for i in range(1, 31)
    ]
    assert all(len(c) == 2 and list(c) == sorted(c) for c in cohorts)
    assert len(set(cohorts)) == 3


def test_a_cohort_is_drawn_without_comparing_clients_with_each_other(monkeypatch):
    """With ten thousand clients that took a quarter of a minute per round."""

    def compared(*_: object) -> bool:
        raise AssertionError("profiles were compared")

    federation = a_federation(((4, 4), (0, 4), (4, 4)))
    monkeypatch.setattr(ClientProfile, "__eq__", compared)
    assert len(plan_at(1, federation=federation).orders) == 2


def test_a_note_on_thousands_of_clients_names_the_first_of_them():
    federation = a_federation(((4, 4), *[(0, 4)] * 2000))
    (note, _) = plan_at(1, a_config(federation__clients=2001), federation).notes
    assert "client-50 and 1950 more" in note
    assert len(note) < 1000


def test_clients_without_examples_are_left_out_and_noted():
    federation = a_federation(((4, 4), (0, 4), (4, 4)))
    plan = plan_at(1, federation=federation)
    assert [o.assignment.client_id for o in plan.orders] == ["client-0", "client-2"]
    assert any("client-1" in note for note in plan.notes)


def test_initial_factors_are_named_by_group_and_seed():
    first, again = (
        initial_state(a_config(), a_federation()),
        initial_state(a_config(), a_federation()),
    )
    other = initial_state(a_config(seed=1), a_federation())
    a, b = factors_of(first.tensors, QUERY)
    np.testing.assert_array_equal(a, factors_of(again.tensors, QUERY).a)
    assert not np.array_equal(a, factors_of(other.tensors, QUERY).a)
    assert not b.any()


def test_clients_that_disagree_are_named():
    federation = a_federation()
    stranger = dataclasses.replace(
        federation.clients[1], model=dataclasses.replace(federation.model, base_digest="other")
    )
    with pytest.raises(TransportError, match="client-1 has base model other"):
        agree((federation.clients[0], stranger))
    with pytest.raises(TransportError, match="no client"):
        agree(())
