"""What the server makes of reported drift and loss rises."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from orchestrator import recall
from orchestrator.federation import initial_state
from orchestrator.fleet import Fleet
from orchestrator.planner import plan_step
from orchestrator.schedule import Step
from orchestrator.sections import Steering
from strategies.types import ClientProfile, ModelDescription, Observation, ParamKey, Remembered
from tests.orchestrator.builders import a_config, a_federation

MODEL = ModelDescription(base_digest="", num_parameters=0, num_blocks=0, groups=())


def seen(client, drift, *rises):
    return Observation(
        client_id=client,
        groups={},
        answered=True,
        loss=None,
        bytes_down=0,
        bytes_up=0,
        seconds=0.0,
        evidence={ParamKey(g, "drift"): np.array(d**2) for g, d in drift.items()},
        remembered=tuple(
            Remembered(task_index=task, num_examples=count, loss_sum=0.0, loss_rise=rise)
            for task, count, rise in rises
        ),
    )


def client(*num_train):
    return ClientProfile(
        client_id="c",
        kind="cpu",
        device="",
        memory_bytes=0,
        tasks=(),
        num_train=num_train,
        num_test=num_train,
        model=MODEL,
    )


def after(*rounds):
    state = {}
    for index, observations in rounds:
        step = Step(kind="train", task_index=0, round_index=index)
        state = recall.observed(state, step, observations)
    return state


def test_drift_counts_in_the_first_rounds_of_tasks():
    state = after(
        (0, [seen("a", {"head": 4.0, "query": 1.0}), seen("b", {"head": 2.0})]),
        (1, [seen("a", {"head": 1.0, "query": 2.0})]),
        (2, [seen("a", {"head": 2.0, "query": 2.0})]),
    )
    assert recall.view_of(state).sensitivity == pytest.approx({"head": 3.0, "query": 1.0})


def test_a_rise_is_the_mean_over_all_clients_examples_as_last_reported():
    state = after(
        (0, [seen("a", {}, (0, 10, 1.0)), seen("b", {}, (0, 30, 7.0))]),
        (1, [seen("a", {}, (0, 10, 5.0), (1, 4, 0.0))]),
        (2, [seen("b", {}, (1, 4, 2.0))]),
    )
    assert recall.view_of(state).rises == {0: 0.5, 1: 0.5}


def test_the_order_of_clients_does_not_matter():
    one, two = seen("a", {"head": 1.0}, (0, 3, 1.0)), seen("b", {"head": 2.0}, (0, 5, 2.0))
    first, second = after((0, [one, two])), after((0, [two, one]))
    assert {n: v.tolist() for n, v in first.items()} == {n: v.tolist() for n, v in second.items()}


def test_a_client_whose_tasks_have_faded_replays_more():
    steering = Steering(lowest_share=0.1, full_at_nats=1.0)
    state = after((0, [seen("a", {}, (0, 10, 5.0), (1, 10, 0.0))]))
    shares = [
        recall.share_of(steering, 0.5, c, state) for c in (client(0, 9), client(9, 9), client(9, 0))
    ]
    assert shares == pytest.approx([0.1, 0.2, 0.3])
    worse = after((0, [seen("a", {}, (0, 10, 50.0))]))
    assert recall.share_of(steering, 0.5, client(9, 0), worse) == pytest.approx(0.5)
    assert recall.share_of(steering, 0.05, client(9, 0), worse) == pytest.approx(0.05)
    assert recall.share_of(steering, 0.5, client(9, 0), {}) == pytest.approx(0.1)


@given(
    rises=st.lists(st.floats(-5, 5), min_size=3, max_size=3),
    counts=st.lists(st.integers(0, 40), min_size=3, max_size=3),
    lowest=st.floats(0, 1),
    most=st.floats(0, 1),
    task=st.integers(0, 2),
)
@example(rises=[-2.0, -1.0, 0.0], counts=[4, 4, 0], lowest=0.1, most=0.5, task=2)
def test_a_share_keeps_its_bounds_and_grows_with_what_was_lost(rises, counts, lowest, most, task):
    steering = Steering(lowest_share=lowest, full_at_nats=2.0)

    def share(found):
        reported = [(index, 4, 4 * rise) for index, rise in enumerate(found)]
        return recall.share_of(
            steering, most, client(*counts), after((0, [seen("a", {}, *reported)]))
        )

    worse = [rise + (3.0 if index == task else 0.0) for index, rise in enumerate(rises)]
    assert min(lowest, most) - 1e-12 <= share(rises) <= share(worse) + 1e-12 <= most + 2e-12


def test_steering_makes_no_round_longer():
    """Its share is part of each batch: steps, batches and predicted cost are those without it."""
    federation, er = a_federation(), {"learning__methods": [{"name": "er"}]}
    state = {"rise|0": np.array([8.0, 4.0])}
    plans = []
    for steering in ({}, {"replay__steering": {"lowest_share": 0.1, "full_at_nats": 4.0}}):
        config = a_config(**er, **steering)
        start = initial_state(config, federation)
        at = dataclasses.replace(start, step_index=4, memories={recall.RECALL: state})
        plans.append(plan_step("run", config, federation, at, Fleet()))
    for plain, steered in zip(plans[0].orders, plans[1].orders, strict=True):
        work, own = plain.assignment.work, steered.assignment.work
        assert (work.replay.share, own.replay.share) == (0.5, pytest.approx(0.3))
        replay = dataclasses.replace(own.replay, share=0.5, measured=work.replay.measured)
        assert dataclasses.replace(own, replay=replay) == work
        assert steered.assignment.groups == plain.assignment.groups
    assert plans[0].view.budget == plans[1].view.budget
