"""Oracles and laws of aggregation, against dense arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies.aggregation.exact import Exact
from strategies.aggregation.fedavg import FedAvg
from strategies.catalog import AGGREGATORS
from strategies.lora import Factors, decompose, factors_of, initial_factors, keys_of, to_factors
from strategies.protocols import Contribution
from strategies.rng import rng_for
from strategies.types import HEAD, GroupName, ParamKey

D_OUT, D_IN, RANK = 12, 20, 6
GROUP = GroupName("layer.query")


def state_of(seed: int):
    """A state whose components are ordered, as the server keeps them."""
    rng = rng_for(seed, "state")
    a, b = rng.normal(size=(RANK, D_IN)), rng.normal(size=(D_OUT, RANK))
    return dict(zip(keys_of(GROUP), to_factors(decompose(a, b), RANK), strict=True))


def client(state, index: int, rank: int, weight: float, seed: int = 0) -> Contribution:
    rng = rng_for(seed, "client", index)
    delta = {
        keys_of(GROUP)[0]: 0.1 * rng.normal(size=(rank, D_IN)).astype(np.float32),
        keys_of(GROUP)[1]: 0.1 * rng.normal(size=(D_OUT, rank)).astype(np.float32),
    }
    return Contribution(client_id=str(index), delta=delta, weight={GROUP: np.array(weight)})


def product(tensors) -> np.ndarray:
    factors = factors_of(tensors, GROUP)
    return factors.b.astype(float) @ factors.a.astype(float)


def local_product(state, contribution: Contribution) -> np.ndarray:
    key_a, key_b = keys_of(GROUP)
    rank = contribution.delta[key_a].shape[0]
    sent = factors_of(state, GROUP).prefix(rank)
    b = sent.b.astype(float) + contribution.delta[key_b]
    return b @ (sent.a.astype(float) + contribution.delta[key_a])


def dense_target(state, contributions) -> np.ndarray:
    """The definition, on full matrices: ΔW + Σ pₖ (BₖAₖ − sentₖ)."""
    total = sum(float(c.weight[GROUP]) for c in contributions)
    target = product(state)
    for c in contributions:
        rank = c.delta[keys_of(GROUP)[0]].shape[0]
        sent = factors_of(state, GROUP).prefix(rank)
        share = float(c.weight[GROUP]) / total
        target = target + share * (local_product(state, c) - sent.b.astype(float) @ sent.a)
    return target


def best_of_rank(matrix: np.ndarray, rank: int) -> np.ndarray:
    u, s, v = np.linalg.svd(matrix, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ v[:rank]


@given(
    ranks=st.lists(st.integers(1, RANK), min_size=1, max_size=5),
    weights=st.lists(st.floats(0.5, 50), min_size=5, max_size=5),
    seed=st.integers(0, 1000),
)
def test_exact_is_the_best_approximation_of_the_dense_mean(ranks, weights, seed):
    state = state_of(seed)
    clients = [client(state, i, r, weights[i], seed) for i, r in enumerate(ranks)]
    target = dense_target(state, clients)
    merged = Exact().aggregate({}, state, clients, 1.0)
    np.testing.assert_allclose(product(merged.tensors), best_of_rank(target, RANK), atol=2e-5)
    s = np.linalg.svd(target, compute_uv=False)
    error = np.sqrt(np.sum(s[RANK:] ** 2) / np.sum(s**2))
    assert merged.truncation[GROUP] == pytest.approx(error, abs=1e-6)


def test_exact_with_a_small_buffer_stays_near_the_dense_mean_and_owns_up_to_its_error():
    state = state_of(3)
    clients = [client(state, i, RANK, 1.0) for i in range(40)]
    whole = Exact().aggregate({}, state, clients, 1.0)
    bounded = Exact(buffer_rank=2 * RANK).aggregate({}, state, clients, 1.0)
    target = dense_target(state, clients)
    error = np.linalg.norm(product(bounded.tensors) - target) / np.linalg.norm(target)
    assert error < 1.2 * bounded.truncation[GROUP]
    assert bounded.truncation[GROUP] >= whole.truncation[GROUP]


@pytest.mark.parametrize("name", AGGREGATORS)
def test_identical_clients_give_that_client(name):
    state = state_of(1)
    one = client(state, 0, RANK, 3.0)
    merged = AGGREGATORS[name]().aggregate({}, state, [one, one, one], 1.0)
    np.testing.assert_allclose(product(merged.tensors), local_product(state, one), atol=1e-5)


@pytest.mark.parametrize("name", AGGREGATORS)
def test_order_of_clients_does_not_matter(name):
    state = state_of(2)
    clients = [client(state, i, RANK, i + 1.0) for i in range(4)]
    aggregate = AGGREGATORS[name]().aggregate
    forward = aggregate({}, state, clients, 1.0)
    backward = aggregate({}, state, clients[::-1], 1.0)
    np.testing.assert_allclose(product(forward.tensors), product(backward.tensors), atol=1e-5)


@pytest.mark.parametrize("name", AGGREGATORS)
def test_inputs_are_not_mutated_and_dtype_is_kept(name):
    state = state_of(4)
    before = {key: value.copy() for key, value in state.items()}
    clients = [client(state, i, RANK, 1.0) for i in range(3)]
    merged = AGGREGATORS[name]().aggregate({}, state, clients, 1.0)
    for key, value in before.items():
        np.testing.assert_array_equal(state[key], value)
        assert merged.tensors[key].dtype == np.float32
        assert merged.tensors[key].shape == value.shape


@pytest.mark.parametrize("name", AGGREGATORS)
def test_nothing_learnt_leaves_the_adapter_the_identity(name):
    linear = (D_OUT, D_IN)
    state = dict(zip(keys_of(GROUP), initial_factors(linear, RANK, rng_for(0)), strict=True))
    zero = {key: np.zeros_like(value) for key, value in state.items()}
    still = Contribution(client_id="0", delta=zero, weight={GROUP: np.array(1.0)})
    merged = AGGREGATORS[name]().aggregate({}, state, [still, still], 1.0)
    for key, value in state.items():
        np.testing.assert_array_equal(merged.tensors[key], value)


@pytest.mark.parametrize("name", AGGREGATORS)
def test_no_clients_change_nothing(name):
    state = state_of(5)
    merged = AGGREGATORS[name]().aggregate({}, state, [], 1.0)
    assert merged.tensors.keys() == state.keys()
    np.testing.assert_array_equal(product(merged.tensors), product(state))


@pytest.mark.parametrize("name", AGGREGATORS)
def test_head_rows_move_only_by_those_who_hold_the_class(name):
    key = ParamKey(HEAD, "weight")
    state = {key: np.ones((3, 2), dtype=np.float32)}
    first = Contribution(
        client_id="0",
        delta={key: np.full((3, 2), 1.0, np.float32)},
        weight={HEAD: np.array([1.0, 0.0, 0.0])},
    )
    second = Contribution(
        client_id="1",
        delta={key: np.full((3, 2), 5.0, np.float32)},
        weight={HEAD: np.array([3.0, 2.0, 0.0])},
    )
    merged = AGGREGATORS[name]().aggregate({}, state, [first, second], 1.0).tensors[key]
    np.testing.assert_allclose(merged, [[5.0, 5.0], [6.0, 6.0], [1.0, 1.0]])


def test_fedavg_error_is_the_covariance_of_the_factors():
    """E = Σ pₖ (Bₖ − B̄)(Aₖ − Ā), sheet C1."""
    state = state_of(6)
    clients = [client(state, i, RANK, 1.0) for i in range(4)]
    merged = FedAvg().aggregate({}, state, clients, 1.0)
    key_a, key_b = keys_of(GROUP)
    a = [state[key_a].astype(float) + c.delta[key_a] for c in clients]
    b = [state[key_b].astype(float) + c.delta[key_b] for c in clients]
    mean_a, mean_b = np.mean(a, axis=0), np.mean(b, axis=0)
    error = np.mean([(x - mean_b) @ (y - mean_a) for x, y in zip(b, a, strict=True)], axis=0)
    exact = np.mean([x @ y for x, y in zip(b, a, strict=True)], axis=0)
    np.testing.assert_allclose(product(merged.tensors) + error, exact, atol=1e-5)
    assert np.linalg.norm(error) > 1e-3


def test_refactoring_keeps_a_trainable_where_nothing_was_learnt():
    a = np.zeros((RANK, D_IN))
    a[0, 0] = 1.0
    b = np.zeros((D_OUT, RANK))
    b[0, 0] = 2.0
    factors: Factors = to_factors(decompose(a, b), RANK)
    np.testing.assert_allclose(np.linalg.norm(factors.a, axis=1), 1 / np.sqrt(3), rtol=1e-6)
    np.testing.assert_allclose(factors.b[:, 1:], 0, atol=1e-7)
    np.testing.assert_allclose(factors.b @ factors.a, b @ a, atol=1e-6)
