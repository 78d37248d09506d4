"""What every aggregator of the catalog must do, whatever its method."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies.aggregation.low_rank import pad, padded
from strategies.catalog import AGGREGATORS
from strategies.errors import ShapeMismatchError, StrategyError
from strategies.lora import Factors, decompose, factors_of, to_factors
from strategies.protocols import Contribution
from strategies.types import FACTORS, HEAD, LORA_A, LORA_B, ParamKey
from tests.strategies.aggregation_rounds import (
    D_IN,
    D_OUT,
    FADING,
    GROUP,
    OTHER,
    RANK,
    UNWEIGHTED,
    allowed,
    client,
    fresh,
    local_product,
    mean_of_models,
    merge,
    parts_of,
    product,
    server,
)

every = pytest.mark.parametrize("name", AGGREGATORS)
any_ranks = st.lists(st.integers(1, RANK), min_size=1, max_size=5)
any_weights = st.lists(st.floats(0.5, 50), min_size=5, max_size=5)
any_seed = st.integers(0, 1000)


def cohort(name: str, ranks, weights=(1.0,) * 5, seed=0, round_index=0, size=0.1):
    """Clients as the aggregator asks for them: its factors, and equal ranks if it needs those."""
    aggregator = AGGREGATORS[name]()
    parts = parts_of(aggregator, round_index)
    return [
        client(i, rank, weights[i], seed=seed, parts=parts, size=size)
        for i, rank in enumerate(allowed(aggregator, ranks))
    ]


@every
@given(rank=st.integers(1, RANK), weight=st.floats(0.5, 50), seed=any_seed)
def test_a_single_client_is_the_answer(name, rank, weight, seed):
    rank = RANK if name in FADING else rank
    state, clients = server(seed), cohort(name, [rank], [weight], seed)
    merged = merge(name, state, clients)
    np.testing.assert_allclose(product(merged.tensors), mean_of_models(state, clients), atol=2e-5)


@every
@given(ranks=any_ranks, seed=any_seed)
def test_a_client_with_all_the_weight_is_the_answer(name, ranks, seed):
    ranks = [RANK, *ranks]
    state, clients = server(seed), cohort(name, ranks[:5], [7.0, 0, 0, 0, 0], seed)
    merged = merge(name, state, clients)
    expected = mean_of_models(state, clients[:1])
    np.testing.assert_allclose(product(merged.tensors), expected, atol=2e-5)


@every
@pytest.mark.parametrize("round_index", [0, 1])
def test_identical_clients_give_that_client(name, round_index):
    state, (one,) = server(1), cohort(name, [RANK], [3.0], round_index=round_index)
    merged = merge(name, state, [one, one, one])
    np.testing.assert_allclose(product(merged.tensors), local_product(state, one), atol=1e-5)


@every
@given(ranks=any_ranks, weights=any_weights, seed=any_seed, order=st.randoms())
def test_order_of_clients_does_not_matter(name, ranks, weights, seed, order):
    state, clients = server(seed), cohort(name, ranks, weights, seed)
    shuffled = list(clients)
    order.shuffle(shuffled)
    forward, backward = merge(name, state, clients), merge(name, state, shuffled)
    np.testing.assert_allclose(product(forward.tensors), product(backward.tensors), atol=2e-5)


@every
@given(ranks=any_ranks, weights=any_weights, seed=any_seed)
def test_inputs_are_not_mutated_and_tensors_keep_shape_and_type(name, ranks, weights, seed):
    state, clients = server(seed, GROUP, OTHER), cohort(name, ranks, weights, seed)
    before = {key: value.copy() for key, value in state.items()}
    deltas = [{key: value.copy() for key, value in c.delta.items()} for c in clients]
    merged = merge(name, state, clients)
    for key, value in before.items():
        np.testing.assert_array_equal(state[key], value)
        assert merged.tensors[key].shape == value.shape
    for contribution, delta in zip(clients, deltas, strict=True):
        for key, value in delta.items():
            np.testing.assert_array_equal(contribution.delta[key], value)
    assert all(v.dtype == np.float32 and np.isfinite(v).all() for v in merged.tensors.values())
    assert all(np.isfinite(v).all() for v in merged.state.values())
    assert all(0 <= error < np.inf for error in merged.truncation.values())


@every
@given(ranks=any_ranks, weights=any_weights, seed=any_seed)
def test_zero_deltas_do_not_change_the_product(name, ranks, weights, seed):
    ranks = [RANK] * len(ranks) if name in FADING else ranks
    state, clients = server(seed), cohort(name, ranks, weights, seed, size=0.0)
    merged = merge(name, state, clients)
    np.testing.assert_allclose(product(merged.tensors), product(state), atol=1e-5)


@every
def test_nothing_learnt_leaves_the_adapter_the_identity_bit_for_bit(name):
    state = fresh()
    merged = merge(name, state, cohort(name, [RANK, 3, 2], size=0.0))
    assert merged.tensors.keys() == state.keys()
    for key, value in state.items():
        np.testing.assert_array_equal(merged.tensors[key], value)


@every
@pytest.mark.parametrize("weights", [(), (0.0, 0.0)])
def test_a_group_nobody_trained_is_unchanged_bit_for_bit(name, weights):
    state = server(5, GROUP, OTHER)
    clients = cohort(name, [RANK] * len(weights), weights) if weights else []
    merged = merge(name, state, clients)
    assert merged.tensors.keys() == state.keys()
    for key, value in state.items():
        assert merged.tensors[key].tobytes() == value.tobytes()


@every
def test_groups_are_merged_apart(name):
    state, parts = server(6, GROUP, OTHER), parts_of(AGGREGATORS[name]())
    both = client(0, parts=parts, groups=(GROUP, OTHER))
    merged = merge(name, state, [both, client(1, parts=parts)])
    only = {key: value for key, value in both.delta.items() if key.group == OTHER}
    alone = merge(name, state, [Contribution(client_id="0", delta=only, weight=both.weight)])
    np.testing.assert_allclose(
        product(merged.tensors, OTHER), product(alone.tensors, OTHER), atol=1e-5
    )
    assert not np.allclose(product(merged.tensors), product(state), atol=1e-3)


@every
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
    merged = merge(name, state, [first, second]).tensors[key]
    first_row = 4.0 if name in UNWEIGHTED else 5.0
    np.testing.assert_allclose(merged, [[first_row] * 2, [6.0, 6.0], [1.0, 1.0]])


@every
def test_dense_tensors_are_averaged_beside_low_rank_ones(name):
    key, parts = ParamKey(HEAD, "bias"), parts_of(AGGREGATORS[name]())
    state = server(7) | {key: np.zeros(2, dtype=np.float32)}
    clients = []
    for index, (value, weight) in enumerate([(1.0, 1.0), (4.0, 2.0)]):
        low_rank = client(index, parts=parts)
        delta = {**low_rank.delta, key: np.full(2, value, np.float32)}
        weights = {**low_rank.weight, HEAD: np.array(weight)}
        clients.append(Contribution(client_id=str(index), delta=delta, weight=weights))
    expected = 2.5 if name in UNWEIGHTED else 3.0
    np.testing.assert_allclose(merge(name, state, clients).tensors[key], [expected] * 2)


@every
@pytest.mark.parametrize("bad", [(RANK + 1, D_IN), (RANK, 1)])
def test_factors_that_do_not_fit_are_refused_by_client_and_tensor(name, bad):
    part = LORA_A if LORA_A in parts_of(AGGREGATORS[name]()) else LORA_B
    shape = bad if part == LORA_A else (D_OUT if bad[1] == D_IN else 1, bad[0])
    delta = {ParamKey(GROUP, part): np.ones(shape, np.float32)}
    wrong = Contribution(client_id="c7", delta=delta, weight={GROUP: np.array(1.0)})
    with pytest.raises(ShapeMismatchError, match=rf"c7 sent {GROUP}\.{part}.*\({shape[0]}, "):
        merge(name, server(), [wrong])


@every
def test_low_rank_training_of_a_group_without_factors_is_named(name):
    parts = parts_of(AGGREGATORS[name]())
    with pytest.raises(StrategyError, match=GROUP):
        merge(name, {}, [client(0, parts=parts)])


@given(rank=st.integers(1, RANK), seed=any_seed)
def test_truncating_a_padded_adapter_gives_it_back(rank, seed):
    small = factors_of(server(seed), GROUP).prefix(rank)
    whole = pad(small, RANK)
    assert whole.a.shape == (RANK, D_IN)
    assert whole.b.shape == (D_OUT, RANK)
    np.testing.assert_array_equal(whole.b @ whole.a, small.b @ small.a)
    for back, factor in zip(whole.prefix(rank), small, strict=True):
        np.testing.assert_array_equal(back, factor)


def test_padding_a_contribution_keeps_what_was_not_trained_out_of_it():
    full = padded(client(0, 2, parts=(LORA_B,)), server())
    assert {key.part for key in full.delta} == {LORA_B}
    assert full.delta[ParamKey(GROUP, LORA_B)].shape == (D_OUT, RANK)
    assert {key.part for key in padded(client(0, 2), server()).delta} == set(FACTORS)


def test_refactoring_keeps_a_trainable_where_nothing_was_learnt():
    a, b = np.zeros((RANK, D_IN)), np.zeros((D_OUT, RANK))
    a[0, 0], b[0, 0] = 1.0, 2.0
    factors: Factors = to_factors(decompose(a, b), RANK)
    np.testing.assert_allclose(np.linalg.norm(factors.a, axis=1), 1 / np.sqrt(3), rtol=1e-6)
    np.testing.assert_allclose(factors.b[:, 1:], 0, atol=1e-7)
    np.testing.assert_allclose(factors.b @ factors.a, b @ a, atol=1e-6)


@every
def test_half_precision_updates_change_the_answer_little(name):
    state, clients = server(8), cohort(name, [RANK, RANK, RANK])
    halves = [
        Contribution(
            client_id=c.client_id,
            delta={
                key: value.astype(np.float16).astype(np.float32) for key, value in c.delta.items()
            },
            weight=c.weight,
        )
        for c in clients
    ]
    full, half = merge(name, state, clients), merge(name, state, halves)
    error = np.linalg.norm(product(full.tensors) - product(half.tensors))
    assert error < 1e-3 * np.linalg.norm(product(full.tensors))


@every
def test_the_same_round_gives_the_same_bits(name):
    state, clients = server(9), cohort(name, [RANK, 3, 4])
    once, again = merge(name, state, clients), merge(name, state, clients)
    for key, value in once.tensors.items():
        assert again.tensors[key].tobytes() == value.tobytes()
