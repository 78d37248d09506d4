"""Error feedback: what is cut is kept, offered again, and accounted for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies import cores
from strategies.aggregation.factored_sum import FactoredSum
from strategies.aggregation.feedback import Offer, lost_of, publish, residual_of
from strategies.lora import Factors, keys_of
from strategies.types import GroupName
from tests.strategies.aggregation_rounds import (
    D_IN,
    D_OUT,
    GROUP,
    OTHER,
    client,
    mean_of_models,
    merge,
    product,
    server,
)

FEEDS_BACK = ("exact", "partition")
every = pytest.mark.parametrize("name", FEEDS_BACK)


def residual(state, group: GroupName = GROUP) -> np.ndarray:
    left = residual_of(state, group)
    return np.zeros((D_OUT, D_IN)) if left is None else left.b.astype(float) @ left.a


@every
@given(
    ranks=st.lists(st.integers(1, 3), min_size=1, max_size=4),
    rounds=st.integers(1, 5),
    size=st.sampled_from([0.05, 0.5]),
    seed=st.integers(0, 1000),
)
def test_published_and_residual_are_the_running_sum_up_to_what_is_reported(
    name, ranks, rounds, size, seed
):
    """P_T + E_T = P_0 + Σ updates, within the norms of what neither could hold."""
    ranks = ranks if name == "exact" else [3] * len(ranks)
    tensors, memory = server(seed, rank=3), {}
    total = product(tensors)
    for index in range(rounds):
        clients = [client(i, r, 1.0 + i, seed=seed + index, size=size) for i, r in enumerate(ranks)]
        total = total + mean_of_models(tensors, clients) - product(tensors)
        merged = merge(name, tensors, clients, memory)
        tensors, memory = merged.tensors, merged.state
    gap = np.linalg.norm(product(tensors) + residual(memory) - total)
    assert gap <= lost_of(memory, GROUP) + 1e-5 * np.linalg.norm(total)


@every
def test_nothing_is_lost_while_the_residual_can_hold_it(name):
    """One client of the server's rank a round adds at most that rank to the sum."""
    state = server(1)
    first = merge(name, state, [client(0), client(1)])
    gap = (
        product(first.tensors)
        + residual(first.state)
        - mean_of_models(state, [client(0), client(1)])
    )
    assert np.linalg.norm(residual(first.state)) > 1e-2
    np.testing.assert_allclose(gap, 0, atol=1e-6)
    assert lost_of(first.state, GROUP) < 1e-6


@every
def test_truncation_reports_what_was_not_published_this_round(name):
    state, clients = server(1), [client(0), client(1)]
    first = merge(name, state, clients)
    whole = mean_of_models(state, clients)
    expected = np.linalg.norm(residual(first.state)) / np.linalg.norm(whole)
    assert first.truncation[GROUP] == pytest.approx(expected, rel=1e-4)


@every
def test_the_residual_has_at_most_the_servers_rank(name):
    state, clients = server(2, rank=2), [client(i, 2, size=1.0) for i in range(5)]
    merged = merge(name, state, clients)
    left = residual_of(merged.state, GROUP)
    assert left.rank == 2
    assert left.a.dtype == left.b.dtype == np.float32
    gap = product(merged.tensors) + residual(merged.state) - mean_of_models(state, clients)
    assert lost_of(merged.state, GROUP) == pytest.approx(np.linalg.norm(gap), rel=1e-5)


@every
def test_one_client_at_the_servers_rank_leaves_no_residual(name):
    merged = merge(name, server(3), [client(0)])
    assert residual_of(merged.state, GROUP) is None
    assert merged.truncation[GROUP] < 1e-6


@every
def test_a_residual_alone_does_not_move_the_product(name):
    merged = merge(name, server(4), [client(0), client(1)])
    still = merge(name, merged.tensors, [client(0, size=0.0)], merged.state)
    np.testing.assert_allclose(product(still.tensors), product(merged.tensors), atol=1e-5)
    np.testing.assert_allclose(residual(still.state), residual(merged.state), atol=1e-5)


@every
def test_a_group_nobody_trained_keeps_its_residual(name):
    both = [client(i, groups=(GROUP, OTHER)) for i in range(2)]
    first = merge(name, server(5, GROUP, OTHER), both)
    second = merge(name, first.tensors, [client(2)], first.state)
    np.testing.assert_array_equal(residual(second.state, OTHER), residual(first.state, OTHER))
    assert not np.array_equal(residual(second.state), residual(first.state))


def two_clients(tensors, direction: tuple[np.ndarray, np.ndarray], size: float):
    """Rank 1: one client doubles what it has, one holds size · u v: the mean adds size/2 · u v."""
    (key_a, key_b), (u, v) = keys_of(GROUP), direction
    double = client(0, 1, size=0.0)
    double.delta[key_b][:] = tensors[key_b]
    other = client(1, 1, size=0.0)
    other.delta[key_a][:] = v - tensors[key_a]
    other.delta[key_b][:] = size * u[:, None] - tensors[key_b]
    return [double, other]


@pytest.mark.parametrize(
    ("name", "learns"), [*((n, True) for n in FEEDS_BACK), ("flexlora", False)]
)
def test_a_weak_direction_learnt_again_and_again_comes_out_with_feedback_alone(name, learns):
    """Each round adds a tenth of what is published, in a direction that the cut throws away."""
    tensors, memory = server(6, rank=1), {}
    u, s, v = np.linalg.svd(product(tensors))
    for _ in range(15):
        clients = two_clients(tensors, (u[:, 1], v[1]), 0.2 * s[0])
        merged = merge(name, tensors, clients, memory)
        tensors, memory = merged.tensors, merged.state
    shown = u[:, 1] @ product(tensors) @ v[1]
    assert shown == pytest.approx(1.5 * s[0] if learns else 0.0, abs=1e-4)


def offers(seed: int, count: int = 9) -> dict[GroupName, Offer]:
    rng, found = np.random.default_rng(seed), {}
    for index in range(count):
        pairs = [Factors(rng.normal(size=(4, 90)), rng.normal(size=(80, 4))) for _ in range(12)]
        total = FactoredSum.lossless(pairs[0])
        for pair in pairs:
            total.add(pair)
        current = Factors(*(value.astype(np.float32) for value in pairs[0]))
        found[GroupName(f"group-{index}")] = Offer(total, current)
    return found


def test_groups_are_cut_to_the_same_bits_alone_and_side_by_side(monkeypatch):
    memory = publish({}, offers(seed=0)).state
    monkeypatch.setattr(cores, "usable_cores", lambda: 8)
    together = publish(memory, offers(seed=1))
    monkeypatch.setattr(cores, "usable_cores", lambda: 1)
    assert len(memory) == 3 * 9  # every group left something over
    for group, offer in offers(seed=1).items():
        alone = publish(memory, {group: offer})
        assert alone.truncation[group] == together.truncation[group]
        for key, value in alone.tensors.items():
            np.testing.assert_array_equal(together.tensors[key], value)
        for name in (name for name in memory if name.startswith(f"{group}|")):
            np.testing.assert_array_equal(together.state[name], alone.state[name])


def test_what_other_groups_left_over_stays():
    memory = publish({}, offers(seed=0, count=3)).state
    (group, offer), *_ = offers(seed=1).items()
    after = publish(memory, {group: offer}).state
    others = {name for name in memory if not name.startswith(f"{group}|")}
    assert after.keys() == memory.keys()
    assert all(after[name] is memory[name] for name in others)
