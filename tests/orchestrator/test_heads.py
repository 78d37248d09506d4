"""The step that sums examples for a solved head: who is asked for what, and what a bad sum does."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from orchestrator.federation import initial_state
from orchestrator.fleet import Fleet
from orchestrator.heads import BOOK, SUMS, encoder_moved
from orchestrator.planner import plan_step
from orchestrator.rounds import close_step
from orchestrator.schedule import schedule
from orchestrator.transport import failure
from strategies.errors import RoundFailedError
from strategies.types import HEAD, FailureReason, ParamKey, Reply, Update
from tests.orchestrator.builders import QUERY, a_config, a_federation

WEIGHT = ParamKey(HEAD, "weight")
COUNTS, CLASS_SUMS = ParamKey(HEAD, "class-counts"), ParamKey(HEAD, "class-sums")


def config(**changes):
    return a_config(
        model__pooling="mean",
        model__head="cosine",
        strategy={"head": {"name": "prototype"}},
        learning__adapted_tasks=changes.pop("adapted", 0),
        **changes,
    )


FEDERATION = a_federation(num_train=((4, 0), (2, 6), (4, 4)))


class Run:
    """A run's pure half, head step by head step."""

    def __init__(self, settings=None):
        self.config = settings or config()
        self.state = initial_state(self.config, FEDERATION)
        self.steps = schedule(self.config, len(FEDERATION.tasks))

    def plan(self, task):
        index = next(
            i for i, s in enumerate(self.steps) if s.kind == "head" and s.task_index == task
        )
        self.state = dataclasses.replace(self.state, step_index=index)
        return plan_step("run", self.config, FEDERATION, self.state, Fleet())

    def close(self, plan, answers):
        replies = [Reply(result=a, bytes_down=1, bytes_up=1, seconds=0.1) for a in answers]
        outcome = close_step(self.state, plan, replies, config=self.config, federation=FEDERATION)
        self.state = outcome.state
        return outcome


def sums(order, counts, value):
    """A client's answer: ``counts`` per class, every feature equal to ``value``."""
    counts = np.array(counts, dtype=np.float32)
    rows = np.full((np.count_nonzero(counts), 7), value, np.float32) * counts[counts > 0, None]
    return Update(
        assignment_id=order.assignment.assignment_id,
        client_id=order.assignment.client_id,
        plan_hash=order.assignment.plan_hash(),
        delta={},
        num_examples={},
        sketches={COUNTS: np.stack([counts, counts]), CLASS_SUMS: rows},
    )


def asked(plan):
    return {o.assignment.client_id: o.assignment.probe.tasks for o in plan.orders}


def test_everybody_is_asked_for_every_task_once():
    run = Run()
    first = run.plan(0)
    assert asked(first) == {"client-0": (0,), "client-1": (0,), "client-2": (0,)}
    assert all(o.assignment.probe.batches is None for o in first.orders)
    run.close(first, [sums(o, [2, 1, 0, 0], 1.0) for o in first.orders])
    assert asked(run.plan(1)) == {"client-1": (1,), "client-2": (1,)}


def test_rows_are_means_over_clients_and_old_rows_stay():
    run = Run()
    plan = run.plan(0)
    run.close(plan, [sums(o, [1 + i, 0, 0, 0], float(i)) for i, o in enumerate(plan.orders)])
    rows = run.state.tensors[WEIGHT]
    np.testing.assert_allclose(rows[0], (0 * 1 + 1 * 2 + 2 * 3) / 6)
    assert not rows[1:].any()
    later = run.plan(1)
    run.close(later, [sums(o, [0, 0, 3, 0], 5.0) for o in later.orders])
    np.testing.assert_array_equal(run.state.tensors[WEIGHT][0], rows[0])
    np.testing.assert_allclose(run.state.tensors[WEIGHT][2], 5.0)


def test_a_client_that_was_away_is_asked_again():
    run = Run()
    plan = run.plan(0)
    answers = [sums(o, [2, 1, 0, 0], 1.0) for o in plan.orders]
    answers[2] = failure(plan.orders[2], FailureReason.DEADLINE, "asleep")
    run.close(plan, answers)
    assert asked(run.plan(1)) == {"client-1": (1,), "client-2": (0, 1)}


def test_sums_of_another_form_are_a_fault_of_that_client_alone():
    run = Run()
    plan = run.plan(0)
    answers = [sums(o, [2, 1, 0, 0], 1.0) for o in plan.orders]
    wrong = {**answers[1].sketches, CLASS_SUMS: np.zeros((3, 7), np.float32)}
    answers[1] = dataclasses.replace(answers[1], sketches=wrong)
    outcome = run.close(plan, answers)
    assert [r.failure_reason for r in outcome.replies] == [None, "malformed", None]
    assert "expected (2, 7)" in outcome.replies[1].failure_detail
    np.testing.assert_allclose(run.state.memories[SUMS]["counts"], [4, 2, 0, 0])
    assert set(run.state.memories[BOOK]) == {"client-0", "client-2", "step"}


def test_nobodys_sums_fail_the_step_with_every_reason():
    run = Run()
    plan = run.plan(0)
    with pytest.raises(RoundFailedError, match="asleep"):
        run.close(plan, [failure(o, FailureReason.DEADLINE, "asleep") for o in plan.orders])


def test_once_the_encoder_moves_memories_stand_in_for_old_tasks():
    run = Run(config(adapted=None))
    plan = run.plan(0)
    run.close(plan, [sums(o, [2, 1, 0, 0], 1.0) for o in plan.orders])
    assert not encoder_moved(run.state)
    head_only = {f"{HEAD}|weight": run.state.step_index + 1}
    run.state = dataclasses.replace(run.state, changed={**run.state.changed, **head_only})
    assert not encoder_moved(run.state)
    moved = {f"{QUERY}|lora_A": run.state.step_index + 1}
    run.state = dataclasses.replace(run.state, changed={**run.state.changed, **moved})
    assert encoder_moved(run.state)
    again = run.plan(1)
    assert asked(again) == {"client-0": (), "client-1": (1,), "client-2": (1,)}
    assert all(o.assignment.probe.remembered for o in again.orders)
    run.close(again, [sums(o, [1, 0, 1, 0], 3.0) for o in again.orders])
    np.testing.assert_allclose(run.state.memories[SUMS]["counts"], [3, 0, 3, 0])
    np.testing.assert_allclose(run.state.tensors[WEIGHT][0], 3.0)


def test_a_head_goes_with_the_architecture_it_is_made_for():
    from strategies.errors import ConfigError

    with pytest.raises(ConfigError, match="random-features"):
        a_config(model__pooling="mean", strategy={"head": {"name": "analytic"}})
    with pytest.raises(ConfigError, match="pooling"):
        a_config(model__head="cosine", strategy={"head": {"name": "prototype"}})
    with pytest.raises(ConfigError, match="a solved head"):
        a_config(learning__adapted_tasks=1)
