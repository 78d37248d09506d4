"""Every aggregator against its definition, written naively on full matrices in float64."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies.aggregation.exact import Exact
from strategies.aggregation.flexlora import FlexLora
from strategies.aggregation.partition import Partition
from strategies.lora import factors_of, keys_of
from strategies.rng import rng_for
from strategies.types import LORA_A, LORA_B
from tests.strategies.aggregation_rounds import (
    D_IN,
    D_OUT,
    GROUP,
    RANK,
    best_of_rank,
    client,
    held,
    local_product,
    mean_of_clients,
    mean_of_models,
    merge,
    product,
    rank_of,
    server,
    shares,
)

KEY_A, KEY_B = keys_of(GROUP)
mixed_ranks = st.lists(st.integers(1, RANK), min_size=1, max_size=5)
counts = st.integers(1, 5)
any_weights = st.lists(st.floats(0.5, 50), min_size=5, max_size=5)
any_seed = st.integers(0, 1000)


def cohort(ranks, weights, seed, parts=(LORA_A, LORA_B)):
    return [client(i, r, weights[i], seed=seed, parts=parts) for i, r in enumerate(ranks)]


def error_of_cut(target):
    s = np.linalg.svd(target, compute_uv=False)
    return np.sqrt(np.sum(s[RANK:] ** 2) / np.sum(s**2))


def padded(matrix, shape):
    whole = np.zeros(shape)
    whole[: matrix.shape[0], : matrix.shape[1]] = matrix
    return whole


@given(ranks=mixed_ranks, weights=any_weights, seed=any_seed)
def test_exact_is_the_best_approximation_of_the_mean_of_the_models(ranks, weights, seed):
    state, clients = server(seed), cohort(ranks, weights, seed)
    merged, target = merge("exact", state, clients), mean_of_models(state, clients)
    np.testing.assert_allclose(product(merged.tensors), best_of_rank(target, RANK), atol=2e-5)
    assert merged.truncation[GROUP] == pytest.approx(error_of_cut(target), abs=1e-6)


@given(count=counts, weights=any_weights, seed=any_seed)
def test_fedavg_is_the_mean_of_each_factor(count, weights, seed):
    state, clients = server(seed), cohort([RANK] * count, weights, seed)
    merged = merge("fedavg", state, clients)
    p, factors = shares(clients), [held(state, c) for c in clients]
    for index, key in enumerate((KEY_A, KEY_B)):
        expected = sum(share * pair[index] for share, pair in zip(p, factors, strict=True))
        np.testing.assert_allclose(merged.tensors[key], expected, atol=1e-6)


@given(ranks=mixed_ranks, weights=any_weights, seed=any_seed)
def test_ffa_is_the_mean_of_the_models_and_never_moves_a(ranks, weights, seed):
    state, clients = server(seed), cohort(ranks, weights, seed, (LORA_B,))
    merged = merge("ffa", state, clients)
    np.testing.assert_allclose(product(merged.tensors), mean_of_models(state, clients), atol=1e-5)
    assert merged.tensors[KEY_A].tobytes() == state[KEY_A].tobytes()


@given(ranks=mixed_ranks, weights=any_weights, seed=any_seed)
def test_rolora_is_the_mean_of_the_models_in_both_phases(ranks, weights, seed):
    state = server(seed)
    for trained, frozen in ((LORA_B, KEY_A), (LORA_A, KEY_B)):
        clients = cohort(ranks, weights, seed, (trained,))
        merged = merge("rolora", state, clients).tensors
        np.testing.assert_allclose(product(merged), mean_of_models(state, clients), atol=1e-5)
        assert merged[frozen].tobytes() == state[frozen].tobytes()
        state = merged


@given(ranks=mixed_ranks, weights=any_weights, seed=any_seed)
def test_hetlora_weighs_padded_factors_by_the_norm_of_the_product(ranks, weights, seed):
    state, clients = server(seed), cohort(ranks, weights, seed)
    merged = merge("hetlora", state, clients)
    s = np.array([np.linalg.norm(local_product(state, c)) for c in clients])
    a = sum(w * padded(held(state, c)[0], (RANK, D_IN)) for w, c in zip(s, clients, strict=True))
    b = sum(w * padded(held(state, c)[1], (D_OUT, RANK)) for w, c in zip(s, clients, strict=True))
    top = max(ranks)
    factors = factors_of(merged.tensors, GROUP)
    np.testing.assert_allclose(factors.a[:top], (a / s.sum())[:top], atol=1e-5)
    np.testing.assert_allclose(factors.b[:, :top], (b / s.sum())[:, :top], atol=1e-5)
    np.testing.assert_array_equal(factors.a[top:], state[KEY_A][top:])
    np.testing.assert_array_equal(factors.b[:, top:], state[KEY_B][:, top:])


@given(ranks=mixed_ranks, weights=any_weights, seed=any_seed)
def test_flexlora_is_the_best_approximation_of_the_mean_of_the_clients(ranks, weights, seed):
    state, clients = server(seed), cohort(ranks, weights, seed)
    merged, target = merge("flexlora", state, clients), mean_of_clients(state, clients)
    np.testing.assert_allclose(product(merged.tensors), best_of_rank(target, RANK), atol=2e-5)
    assert merged.truncation[GROUP] == pytest.approx(error_of_cut(target), abs=1e-6)
    assert not merged.state


@pytest.mark.parametrize("name", ["flora", "fedex"])
@given(ranks=mixed_ranks, weights=any_weights, seed=any_seed)
def test_merging_into_the_base_is_the_mean_of_the_models_without_any_loss(
    name, ranks, weights, seed
):
    ranks = [ranks[0]] * len(ranks) if name == "fedex" else ranks
    state, clients = server(seed), cohort(ranks, weights, seed)
    merged = merge(name, state, clients).tensors
    np.testing.assert_allclose(product(merged), mean_of_models(state, clients), atol=2e-5)


@given(ranks=mixed_ranks, weights=any_weights, seed=any_seed)
def test_fedsa_averages_the_rows_of_a_over_those_who_have_them(ranks, weights, seed):
    state, clients = server(seed), cohort(ranks, weights, seed, (LORA_A,))
    merged = merge("fedsa", state, clients).tensors
    for row in range(RANK):
        owners = [c for c in clients if rank_of(c) > row]
        values = [held(state, c)[0][row] for c in owners] or [state[KEY_A][row]]
        p = shares(owners) if owners else [1.0]
        expected = sum(share * value for share, value in zip(p, values, strict=True))
        np.testing.assert_allclose(merged[KEY_A][row], expected, atol=1e-6)
    assert merged[KEY_B].tobytes() == state[KEY_B].tobytes()


def slices(state, clients):
    """Σ over slices of the product mean among those who have it, and the rest of the server's."""
    edges = sorted({0, RANK} | {rank_of(c) for c in clients})
    total = np.zeros((D_OUT, D_IN))
    for low, high in pairwise(edges):
        owners = [c for c in clients if rank_of(c) >= high]
        if not owners:
            a, b = (factor.astype(float) for factor in factors_of(state, GROUP))
            total += b[:, low:high] @ a[low:high]
            continue
        for share, c in zip(shares(owners), owners, strict=True):
            a, b = held(state, c)
            total += share * b[:, low:high] @ a[low:high]
    return total


@given(ranks=mixed_ranks, weights=any_weights, seed=any_seed)
def test_partition_averages_each_slice_over_those_who_have_it(ranks, weights, seed):
    state, clients = server(seed), cohort(ranks, weights, seed)
    merged, target = merge("partition", state, clients), slices(state, clients)
    np.testing.assert_allclose(product(merged.tensors), best_of_rank(target, RANK), atol=2e-5)
    assert merged.truncation[GROUP] == pytest.approx(error_of_cut(target), abs=1e-6)


@pytest.mark.parametrize(
    ("bounded", "target_of"),
    [
        (Exact(buffer_rank=2 * RANK), mean_of_models),
        (FlexLora(buffer_rank=2 * RANK), mean_of_clients),
        (Partition(buffer_rank=2 * RANK), slices),
    ],
)
def test_a_small_buffer_stays_near_the_definition_and_owns_up_to_its_error(bounded, target_of):
    state = server(3)
    clients = [client(i, 1 + i % RANK, 1.0 + i % 3) for i in range(60)]
    merged = bounded.aggregate({}, state, clients, 1.0, rng_for(0))
    whole = type(bounded)(buffer_rank=5000).aggregate({}, state, clients, 1.0, rng_for(0))
    target = target_of(state, clients)
    error = np.linalg.norm(product(merged.tensors) - target) / np.linalg.norm(target)
    assert whole.truncation[GROUP] < error < 1.2 * merged.truncation[GROUP] < 12 * error
    assert error < 1.5 * whole.truncation[GROUP]
