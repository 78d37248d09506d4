"""What compression keeps back is not lost, even when the server turns the factors around."""

from __future__ import annotations

import numpy as np
import pytest

from clients.feedback import Feedback
from strategies.compression.chain import decompress
from strategies.compression.int8 import Int8
from strategies.compression.topk import TopK
from strategies.lora import Factors, decompose, factors_of, keys_of, to_factors
from strategies.types import HEAD, GroupName, ParamKey

GROUP = GroupName("block.0.query")
KEY_A, KEY_B = keys_of(GROUP)
WEIGHT = ParamKey(HEAD, "weight")
D_OUT, D_IN, RANK = 12, 9, 3


def factors(seed: int, size: float = 1.0) -> Factors:
    rng = np.random.default_rng(seed)
    return Factors(
        rng.normal(size=(RANK, D_IN)).astype(np.float32),
        (size * rng.normal(size=(D_OUT, RANK))).astype(np.float32),
    )


def product(tensors) -> np.ndarray:
    pair = factors_of(tensors, GROUP)
    return pair.b.astype(np.float64) @ pair.a


def told(encoded, chain, like):
    return decompress(encoded, chain, {key: value.shape for key, value in like.items()})


def counts(rows=None):
    return {GROUP: np.array(4), HEAD: np.array(4 if rows is None else rows)}


def test_without_a_chain_nothing_is_touched():
    delta = {KEY_A: factors(1).a, KEY_B: factors(1).b}
    feedback = Feedback(chain=(), sent={}, counts=counts())
    assert feedback.apply(delta) == delta
    assert not feedback.residuals


@pytest.mark.parametrize("chain", [(TopK(density=0.3),), (Int8(),), (TopK(density=0.5), Int8())])
def test_what_was_told_and_what_is_owed_make_up_the_trained_product(chain):
    sent = dict(zip((KEY_A, KEY_B), factors(0), strict=True))
    delta = {KEY_A: factors(1).a, KEY_B: factors(1).b}
    feedback = Feedback(chain=chain, sent=sent, counts=counts())
    heard = told(feedback.apply(delta), chain, delta)
    trained = product({key: sent[key] + delta[key] for key in delta})
    arrived = product({key: sent[key] + heard[key] for key in delta})
    debt, missing = product(feedback.residuals), trained - arrived
    assert np.linalg.norm(missing) > 0
    # The debt is kept at the adapter's rank: what is dropped is the tail of the difference.
    tail = np.linalg.svd(missing, compute_uv=False)[RANK:]
    assert np.linalg.norm(missing - debt) == pytest.approx(np.linalg.norm(tail), rel=1e-3, abs=1e-5)


def test_a_debt_is_paid_although_the_server_turned_the_factors():
    """Train once, then never again: the products told approach the trained one."""
    chain = (TopK(density=0.25),)
    state = dict(zip((KEY_A, KEY_B), factors(0), strict=True))
    delta = {KEY_B: 0.5 * factors(1).b}
    wanted = product({KEY_A: state[KEY_A], KEY_B: state[KEY_B] + delta[KEY_B]})
    residuals, distances = {}, []
    for _ in range(25):
        feedback = Feedback(chain=chain, sent=state, counts=counts(), residuals=residuals)
        heard, residuals = told(feedback.apply(delta), chain, delta), feedback.residuals
        moved = {KEY_A: state[KEY_A], KEY_B: state[KEY_B] + heard[KEY_B]}
        distances.append(np.linalg.norm(product(moved) - wanted))
        # The server merges: same product, other factors, as an SVD gives them.
        pair = to_factors(decompose(moved[KEY_A].astype(float), moved[KEY_B].astype(float)), RANK)
        state = dict(zip((KEY_A, KEY_B), pair, strict=True))
        delta = {KEY_B: np.zeros((D_OUT, RANK), dtype=np.float32)}
    assert distances[0] > 0.3 * np.linalg.norm(delta[KEY_B] - 0.5 * factors(1).b)
    assert distances[-1] < 0.02 * distances[0]


def test_with_only_a_trained_the_debt_goes_into_a():
    chain = (TopK(density=0.3),)
    state = dict(zip((KEY_A, KEY_B), factors(0), strict=True))
    delta, residuals = {KEY_A: factors(1).a}, {}
    wanted = product({KEY_A: state[KEY_A] + delta[KEY_A], KEY_B: state[KEY_B]})
    for _ in range(25):
        feedback = Feedback(chain=chain, sent=state, counts=counts(), residuals=residuals)
        heard, residuals = told(feedback.apply(delta), chain, delta), feedback.residuals
        state = {KEY_A: state[KEY_A] + heard[KEY_A], KEY_B: state[KEY_B]}
        delta = {KEY_A: np.zeros((RANK, D_IN), dtype=np.float32)}
    assert np.linalg.norm(product(state) - wanted) < 1e-2 * np.linalg.norm(wanted)


def test_rows_of_a_head_that_do_not_count_keep_their_debt():
    chain, residuals = (TopK(density=0.2),), {}
    delta = {WEIGHT: np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)}
    first = Feedback(chain=chain, sent={}, counts=counts([1, 1, 1, 1]), residuals=residuals)
    first.apply(delta)
    owed = first.residuals[WEIGHT].copy()
    nothing = {WEIGHT: np.zeros((4, 5), dtype=np.float32)}
    later = Feedback(
        chain=chain, sent={}, counts=counts([0, 3, 0, 3]), residuals=dict(first.residuals)
    )
    heard = told(later.apply(nothing), chain, nothing)[WEIGHT]
    assert not heard[[0, 2]].any()
    np.testing.assert_array_equal(later.residuals[WEIGHT][[0, 2]], owed[[0, 2]])
    np.testing.assert_allclose((heard + later.residuals[WEIGHT])[[1, 3]], owed[[1, 3]], atol=1e-6)
