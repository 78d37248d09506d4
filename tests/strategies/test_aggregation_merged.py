"""Merging into the model itself: FLoRA's stacks and FedEx's residuals lose nothing and replay."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies.lora import keys_of, merged_keys, num_merged
from tests.strategies.aggregation_rounds import (
    D_IN,
    D_OUT,
    GROUP,
    client,
    fresh,
    local_product,
    mean_of_models,
    merge,
    product,
    server,
    shares,
)

KEY_A, KEY_B = keys_of(GROUP)


def test_flora_starts_afresh_after_every_round():
    state = fresh(5)
    merged = merge("flora", state, [client(0), client(1)]).tensors
    assert not merged[KEY_B].any()
    assert not np.allclose(merged[KEY_A], state[KEY_A])
    assert np.abs(merged[KEY_A]).max() <= 1 / np.sqrt(D_IN)


def test_flora_counts_weights_once():
    state, clients = fresh(5), [client(0, weight=1.0), client(1, weight=3.0)]
    merged = merge("flora", state, clients).tensors
    p, products = shares(clients), [local_product(state, c) for c in clients]
    once = sum(w * x for w, x in zip(p, products, strict=True))
    twice = sum(w**2 * x for w, x in zip(p, products, strict=True))
    np.testing.assert_allclose(product(merged), once, atol=1e-6)
    assert np.linalg.norm(once - twice) > 0.1 * np.linalg.norm(once)


@pytest.mark.parametrize("name", ["flora", "fedex"])
def test_a_late_joiner_that_replays_what_was_merged_has_the_model_of_a_continuous_one(name):
    rounds, ranks = 8, [1, 1]
    state, start = fresh(6), product(fresh(6))
    continuous, refactored = start, False
    for index in range(rounds):
        clients = [client(i, r, 1.0 + i, seed=index) for i, r in enumerate(ranks)]
        before, target = state, mean_of_models(state, clients)
        state = merge(name, state, clients).tensors
        continuous = continuous + (target - product(before))
        refactored = refactored or num_merged(state, GROUP) < num_merged(before, GROUP)
        np.testing.assert_allclose(product(state), continuous, atol=1e-5)
    assert refactored or name == "fedex"


@pytest.mark.parametrize("name", ["flora", "fedex"])
def test_merged_pairs_become_one_past_the_rank_a_matrix_can_have(name):
    state, counts = fresh(7), []
    for index in range(15):
        state = merge(name, state, [client(i, 1, seed=index) for i in range(2)]).tensors
        counts.append(num_merged(state, GROUP))
        merged = [state[merged_keys(GROUP, i)[0]].shape[0] for i in range(counts[-1])]
        assert sum(merged) <= min(D_OUT, D_IN)
    assert max(counts) >= min(D_OUT, D_IN) / 2
    assert counts[-1] == 1


@pytest.mark.parametrize("name", ["flora", "fedex"])
def test_earlier_merged_pairs_stay_bit_for_bit_until_they_become_one(name):
    first = merge(name, fresh(8), [client(0, 1), client(1, 1)]).tensors
    second = merge(name, first, [client(0, 1, seed=1), client(1, 1, seed=1)]).tensors
    assert num_merged(second, GROUP) == 2
    for key in merged_keys(GROUP, 0):
        assert second[key].tobytes() == first[key].tobytes()


@pytest.mark.parametrize("name", ["flora", "fedex"])
def test_a_large_cohort_is_merged_without_loss(name):
    state, clients = server(9), [client(i, 4, 1.0 + i % 3) for i in range(40)]
    merged = merge(name, state, clients).tensors
    np.testing.assert_allclose(product(merged), mean_of_models(state, clients), atol=1e-5)


@given(count=st.integers(1, 5), rank=st.integers(1, 3), seed=st.integers(0, 1000))
def test_fedex_starts_from_fedavg_and_merges_a_residual_of_bounded_rank(count, rank, seed):
    state, clients = server(seed), [client(i, rank, 1.0 + i, seed=seed) for i in range(count)]
    merged, averaged = merge("fedex", state, clients).tensors, merge("fedavg", state, clients)
    for key in (KEY_A, KEY_B):
        np.testing.assert_allclose(merged[key], averaged.tensors[key], atol=1e-7)
    found = num_merged(merged, GROUP)
    residual = merged[merged_keys(GROUP, 0)[0]].shape[0] if found else 0
    assert residual <= (count - 1) * rank
    assert found == (count > 1)


@pytest.mark.parametrize("count", [1, 4])
def test_fedex_merges_nothing_when_clients_agree(count):
    merged = merge("fedex", server(1), [client(0)] * count).tensors
    assert num_merged(merged, GROUP) == 0


def test_fedex_gives_the_loss_of_the_mean_of_the_products():
    state, clients, scale = server(2), [client(i) for i in range(3)], 2.0
    rng = np.random.default_rng(0)
    w, x, y = rng.normal(size=(D_OUT, D_IN)), rng.normal(size=(D_IN, 50)), rng.normal(size=50)

    def loss(update):
        return float(np.mean(((w + scale * update) @ x - y) ** 2))

    merged = merge("fedex", state, clients).tensors
    assert loss(product(merged)) == pytest.approx(loss(mean_of_models(state, clients)), rel=1e-6)
    averaged = merge("fedavg", state, clients).tensors
    assert loss(product(averaged)) != pytest.approx(loss(product(merged)), rel=1e-4)
