"""Closing a round: one bad client never spoils it, and is named."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from orchestrator.federation import initial_state
from orchestrator.fleet import Fleet
from orchestrator.planner import plan_step
from orchestrator.rounds import close_step
from orchestrator.transport import failure
from strategies.errors import RoundFailedError
from strategies.types import HEAD, FailureReason, ParamKey, Reply, Score
from tests.orchestrator.builders import QUERY, a_config, a_federation, an_update

CONFIG, FEDERATION = a_config(), a_federation()
STATE = dataclasses.replace(initial_state(CONFIG, FEDERATION), step_index=1)
PLAN = plan_step("run", CONFIG, FEDERATION, STATE, Fleet())


def reply(result) -> Reply:
    return Reply(result=result, bytes_down=10, bytes_up=20, seconds=0.5)


def close(results, config=CONFIG):
    return close_step(STATE, PLAN, map(reply, results), config=config, federation=FEDERATION)


def honest():
    return [an_update(order, FEDERATION) for order in PLAN.orders]


def without(mapping, key):
    return {k: v for k, v in mapping.items() if k != key}


WEIGHT = ParamKey(HEAD, "weight")
FAULTS = {
    "nan": (
        lambda u: dataclasses.replace(u, delta=u.delta | {WEIGHT: np.full((4, 7), np.nan, "f4")}),
        FailureReason.NOT_FINITE,
        "head.weight holds 28 values",
    ),
    "wrong shape": (
        lambda u: dataclasses.replace(u, delta=u.delta | {WEIGHT: np.zeros((1, 7), "f4")}),
        FailureReason.WRONG_SHAPE,
        "head.weight is float32 (1, 7), expected float32 (4, 7)",
    ),
    "wrong dtype": (
        lambda u: dataclasses.replace(u, delta=u.delta | {WEIGHT: np.zeros((4, 7), "f8")}),
        FailureReason.WRONG_SHAPE,
        "float64",
    ),
    "unknown group": (
        lambda u: dataclasses.replace(
            u, delta=u.delta | {ParamKey("ghost", "weight"): np.zeros(1, "f4")}
        ),
        FailureReason.WRONG_SHAPE,
        "ghost.weight is not part of the plan",
    ),
    "missing tensor": (
        lambda u: dataclasses.replace(u, delta=without(u.delta, WEIGHT)),
        FailureReason.WRONG_SHAPE,
        "head.weight is missing",
    ),
    "another rank": (
        lambda u: dataclasses.replace(
            u, delta=u.delta | {ParamKey(QUERY, "lora_A"): np.zeros((1, 7), "f4")}
        ),
        FailureReason.WRONG_SHAPE,
        "lora_A is float32 (1, 7), expected float32 (2, 7)",
    ),
    "another plan": (
        lambda u: dataclasses.replace(u, plan_hash="0" * 16),
        FailureReason.WRONG_PLAN,
        "expected",
    ),
    "another round": (
        lambda u: dataclasses.replace(u, assignment_id="run/00000/client-1"),
        FailureReason.WRONG_PLAN,
        "run/00000",
    ),
    "negative count": (
        lambda u: dataclasses.replace(u, num_examples=u.num_examples | {HEAD: np.array(-1)}),
        FailureReason.WRONG_SHAPE,
        "negative",
    ),
    "count per row of no row": (
        lambda u: dataclasses.replace(u, num_examples=u.num_examples | {HEAD: np.ones(9, "i8")}),
        FailureReason.WRONG_SHAPE,
        "(9,)",
    ),
    "more flips than examples": (
        lambda u: dataclasses.replace(
            u,
            scores=(
                Score(
                    task_index=0,
                    num_examples=3,
                    num_correct=1,
                    loss_sum=0.0,
                    num_lost=2,
                    num_gained=2,
                    num_compared=3,
                ),
            ),
        ),
        FailureReason.MALFORMED,
        "num_lost=2, num_gained=2, num_compared=3) counts more examples",
    ),
    "no count": (
        lambda u: dataclasses.replace(u, num_examples=without(u.num_examples, HEAD)),
        FailureReason.WRONG_SHAPE,
        "no example count for group head",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_bad_update_is_refused_by_name_and_the_round_goes_on(name):
    spoil, reason, words = FAULTS[name]
    good = honest()
    outcome = close([good[0], spoil(good[1]), good[2]])
    bad = outcome.replies[1]
    assert (bad.client_id, bad.status, bad.failure_reason) == ("client-1", "failed", reason)
    assert words in bad.failure_detail
    clean = close([good[0], failure(PLAN.orders[1], FailureReason.CRASHED, ""), good[2]])
    for key, value in clean.state.tensors.items():
        np.testing.assert_array_equal(outcome.state.tensors[key], value)


def test_a_closed_round_advances_and_books_everything():
    outcome = close(honest())
    assert outcome.state.step_index == 2
    assert [r.status for r in outcome.replies] == ["ok"] * 3
    assert {r.bytes_up for r in outcome.replies} == {20}
    assert outcome.replies[0].ranks == {QUERY: 2, "block.1.value": 2, HEAD: 0}
    assert [each.client_kind for each in outcome.replies] == [c.kind for c in FEDERATION.clients]
    assert outcome.metrics == {"loss": 1.0}
    np.testing.assert_allclose(outcome.state.tensors[WEIGHT], 0.01, rtol=1e-6)


def test_too_few_replies_fail_the_round_with_every_reason():
    bad = [
        failure(order, FailureReason.CRASHED, f"boom {i}") for i, order in enumerate(PLAN.orders)
    ]
    with pytest.raises(RoundFailedError, match="0 usable replies, 1 needed") as caught:
        close(bad)
    assert all(f"client-{i}: crashed: boom {i}" in str(caught.value) for i in range(3))


def test_min_replies_counts_usable_ones():
    config = a_config(federation__min_replies=3)
    good = honest()
    spoiled = dataclasses.replace(good[2], plan_hash="0" * 16)
    with pytest.raises(RoundFailedError, match="2 usable replies, 3 needed"):
        close([good[0], good[1], spoiled], config)


def test_updates_are_read_one_at_a_time():
    """Bounded memory: when update k is read, update k−1 has already been folded in."""
    alive = []

    def stream():
        for update in honest():
            alive.append(update)
            yield reply(update)
            alive.pop()

    close_step(STATE, PLAN, stream(), config=CONFIG, federation=FEDERATION)
    assert alive == []
