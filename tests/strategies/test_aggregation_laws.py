"""The laws the methods are known by: where each is exact, what it forgets, what stays put."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies.catalog import AGGREGATORS
from strategies.errors import StrategyError
from strategies.lora import keys_of, squared_norm
from strategies.protocols import Alternating, Personalizing
from strategies.types import (
    LORA_A,
    LORA_B,
    ClientId,
    ClientProfile,
    GroupName,
    GroupSpec,
    ModelDescription,
    RoundView,
)
from tests.strategies.aggregation_rounds import (
    D_IN,
    D_OUT,
    GROUP,
    RANK,
    best_of_rank,
    client,
    fresh,
    held,
    local_product,
    mean_of_clients,
    mean_of_models,
    merge,
    product,
    sent_to,
    server,
    shares,
)

KEY_A, KEY_B = keys_of(GROUP)


@given(
    weights=st.lists(st.floats(0.5, 50), min_size=2, max_size=5),
    rank=st.integers(1, RANK),
    seed=st.integers(0, 1000),
)
def test_fedavg_misses_the_covariance_of_the_factors(weights, rank, seed):
    """E = Σ pₖ (Bₖ − B̄)(Aₖ − Ā), sheet C1."""
    state = server(seed)
    clients = [client(i, rank, weight, seed=seed) for i, weight in enumerate(weights)]
    p, factors = shares(clients), [held(state, c) for c in clients]
    mean_a = sum(w * a for w, (a, _) in zip(p, factors, strict=True))
    mean_b = sum(w * b for w, (_, b) in zip(p, factors, strict=True))
    error = sum(w * (b - mean_b) @ (a - mean_a) for w, (a, b) in zip(p, factors, strict=True))
    merged = merge("fedavg", state, clients).tensors
    np.testing.assert_allclose(product(merged) + error, mean_of_models(state, clients), atol=1e-5)
    assert np.linalg.norm(error) > 1e-4
    assert np.linalg.matrix_rank(error, tol=1e-9) <= (len(clients) - 1) * rank


@pytest.mark.parametrize("name", [n for n, a in AGGREGATORS.items() if a.capabilities.exact])
def test_what_declares_itself_exact_is_the_mean_of_the_models_up_to_its_truncation(name):
    aggregator, state = AGGREGATORS[name](), server(1)
    parts = (LORA_B,) if isinstance(aggregator, Alternating) else (LORA_A, LORA_B)
    clients = [client(i, RANK, 1.0 + i, parts=parts) for i in range(4)]
    merged, target = merge(name, state, clients), mean_of_models(state, clients)
    error = np.linalg.norm(product(merged.tensors) - target) / np.linalg.norm(target)
    assert error == pytest.approx(merged.truncation.get(GROUP, 0.0), abs=1e-6)


def test_hetlora_with_equal_norms_is_the_unweighted_mean_of_the_factors():
    state, target = server(2), 3.0
    clients = []
    for index in range(3):
        a, b = held(state, client(index))
        b *= target / np.sqrt(squared_norm(a, b))
        delta = {KEY_A: a - state[KEY_A], KEY_B: b - state[KEY_B]}
        one = client(index, weight=10.0 ** (index - 1))
        one.delta.clear()
        one.delta.update({key: value.astype(np.float32) for key, value in delta.items()})
        clients.append(one)
    merged = merge("hetlora", state, clients).tensors
    for index, key in enumerate((KEY_A, KEY_B)):
        expected = np.mean([held(state, c)[index] for c in clients], axis=0)
        np.testing.assert_allclose(merged[key], expected, atol=1e-5)


def test_hetlora_measures_a_client_over_all_its_groups():
    state = server(2, GROUP, GroupName("other"))
    strong = client(0, groups=(GROUP, GroupName("other")), size=0.5)
    weak = client(1)
    products = [
        b @ a
        for g in (GROUP, GroupName("other"))
        for a, b in [[state[k].astype(float) + strong.delta[k] for k in keys_of(g)]]
    ]
    s = np.array(
        [
            np.sqrt(sum(np.linalg.norm(p) ** 2 for p in products)),
            np.linalg.norm(local_product(state, weak)),
        ]
    )
    expected = s @ np.stack([held(state, c)[0].ravel() for c in (strong, weak)]) / s.sum()
    merged = merge("hetlora", state, [strong, weak]).tensors
    np.testing.assert_allclose(merged[KEY_A].ravel(), expected, atol=1e-5)


def test_flexlora_truncation_is_the_root_of_the_dropped_squares():
    state, clients = server(3), [client(i, RANK, size=0.4) for i in range(4)]
    merged, target = merge("flexlora", state, clients), mean_of_clients(state, clients)
    lost = np.linalg.norm(target - best_of_rank(target, RANK))
    assert lost > 0.1
    assert merged.truncation[GROUP] * np.linalg.norm(target) == pytest.approx(lost, rel=1e-5)


def test_partition_keeps_high_ranks_where_flexlora_lets_them_fade():
    states = {name: server(4) for name in ("flexlora", "partition", "exact")}
    before = np.linalg.svd(product(states["exact"]), compute_uv=False)
    for round_index in range(6):
        for name, state in states.items():
            clients = [
                client(i, rank, seed=round_index, size=1e-3)
                for i, rank in enumerate([2, 2, 2, RANK])
            ]
            states[name] = merge(name, state, clients).tensors
    after = {n: np.linalg.svd(product(s), compute_uv=False)[:RANK] for n, s in states.items()}
    for name in ("partition", "exact"):
        np.testing.assert_allclose(after[name], before[:RANK], rtol=0.05)
    assert (after["flexlora"][2:] < 0.01 * before[2:RANK]).all()
    np.testing.assert_allclose(after["flexlora"][:2], before[:2], rtol=0.05)


def test_partition_lets_one_strong_client_move_its_own_slice_by_all_it_learnt():
    state = server(4)
    strong, weak = client(0, RANK), [client(i, 2) for i in range(1, 4)]
    strong.delta[KEY_A][:2] = 0
    strong.delta[KEY_B][:, :2] = 0
    for one in weak:
        for value in one.delta.values():
            value[:] = 0
    moved = local_product(state, strong)
    np.testing.assert_allclose(
        product(merge("partition", state, [strong, *weak]).tensors), moved, atol=1e-5
    )
    quarter = product(state) + (moved - product(state)) / 4
    np.testing.assert_allclose(
        mean_of_models(state, [strong, *weak]), quarter, atol=1e-6
    )  # what exact gives


def test_ffa_refuses_an_a_by_client_and_tensor():
    with pytest.raises(StrategyError, match=r"client 0 sent layer\.query\.lora_A.*never moves A"):
        merge("ffa", server(), [client(0)])


def test_ffa_trains_b_in_every_round():
    aggregator = AGGREGATORS["ffa"]()
    assert isinstance(aggregator, Alternating)
    assert {aggregator.trained_factors(index) for index in range(4)} == {(False, True)}


def test_rolora_trains_b_first_and_then_takes_turns():
    aggregator = AGGREGATORS["rolora"]()
    assert isinstance(aggregator, Alternating)
    turns = [aggregator.trained_factors(index) for index in range(4)]
    assert turns == [(False, True), (True, False)] * 2


def test_fedsa_refuses_a_b_by_client_and_tensor():
    with pytest.raises(StrategyError, match=r"client 0 sent layer\.query\.lora_B.*leaves B"):
        merge("fedsa", server(), [client(0)])


def test_fedsa_with_one_client_is_that_clients_own_lora():
    state, one = fresh(3), client(0, parts=(LORA_A,))
    own_b = np.random.default_rng(1).normal(size=(D_OUT, RANK))
    merged = merge("fedsa", state, [one]).tensors
    np.testing.assert_allclose(own_b @ merged[KEY_A], own_b @ held(state, one)[0], atol=1e-5)
    newcomer = sent_to(merged, one)[1]
    assert not newcomer.any()


def test_fedsa_leaves_b_of_every_linear_group_with_every_client():
    linear = GroupSpec(
        name=GROUP, kind="linear", role="query", block=0, parts={}, linear=(D_OUT, D_IN)
    )
    norm = GroupSpec(name=GroupName("norm"), kind="norm", role="norm", block=0, parts={})
    model = ModelDescription(base_digest="d", num_parameters=1, num_blocks=1, groups=(linear, norm))
    clients = tuple(
        ClientProfile(
            client_id=ClientId(name),
            kind="cpu",
            device="cpu",
            memory_bytes=1,
            tasks=(),
            num_train=(),
            num_test=(),
            model=model,
        )
        for name in ("a", "b")
    )
    view = RoundView(task_index=0, round_index=0, groups=model.groups, clients=clients)
    aggregator = AGGREGATORS["fedsa"]()
    assert isinstance(aggregator, Personalizing)
    assert aggregator.kept(view) == {c.client_id: {GROUP: (LORA_B,)} for c in clients}
