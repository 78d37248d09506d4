"""Rank policies: a contract for all, an oracle for each."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies.catalog import RANK_ALLOCATORS
from strategies.cost import CostModel
from strategies.lora import ROW_NORM, factors_of, initial_factors, keys_of, spectrum
from strategies.protocols import Adaptive
from strategies.rank.adalora import AdaLoRA
from strategies.rank.eva import Eva
from strategies.rank.hetlora import HetLoRA
from strategies.rank.limits import expected_seconds, plans_of
from strategies.rank.spectral import Spectral
from strategies.rng import rng_for
from strategies.types import (
    HEAD,
    ClientId,
    LowRank,
    Observation,
    ParamKey,
    RoundBudget,
)
from tests.strategies.model_of_blocks import INNER, WIDTH, a_profile, a_view, everything

LINEAR = [group for group in a_view().groups if group.linear]
SLOW = {"uplink_bytes_per_second": 2e3, "downlink_bytes_per_second": 8e3}
QUICK = {"airllm": {"pretrain_episodes": 1}}
FAST = {"uplink_bytes_per_second": 4e6, "downlink_bytes_per_second": 16e6}


def decaying(seed: int = 0, size: int = 16) -> dict:
    rng = np.random.default_rng(seed)
    return {
        group.name: np.sort(rng.exponential(size=size))[::-1][: min(group.linear)]
        for group in LINEAR
    }


def allocate(policy, view, seed: int = 0):
    return policy.allocate(view, everything(view), rng_for(seed))


@pytest.mark.parametrize("name", sorted(RANK_ALLOCATORS))
@settings(max_examples=16)
@given(seed=st.integers(0, 3), known=st.booleans(), clients=st.integers(1, 4))
def test_contract(name, seed, known, clients):
    policy = RANK_ALLOCATORS[name](**QUICK.get(name, {}))
    profiles = tuple(
        a_profile(i, flops_per_second=1e9, **(SLOW if i % 2 else FAST)) if known else a_profile(i)
        for i in range(clients)
    )
    view = a_view(
        clients=profiles, seed=seed, spectra=decaying(seed),
        budget=RoundBudget(deadline_seconds=5.0 if known else None, steps=2, batch_size=4),
    )  # fmt: skip
    selection = everything(view)
    ranks = policy.allocate(view, selection, rng_for(seed))
    assert ranks == policy.allocate(view, selection, rng_for(seed))
    assert set(ranks) == {client.client_id for client in view.clients}
    for own in ranks.values():
        assert HEAD not in own
        for group in LINEAR:
            if name != "dense":
                assert 0 <= own[group.name] <= min(policy.max_rank, *group.linear)
    if policy.same_for_all:
        assert all(own == next(iter(ranks.values())) for own in ranks.values())
    # Nobody's ranks depend on who else is in the view, unless the policy looks at all together.
    turned = replace(view, clients=view.clients[::-1])
    assert policy.allocate(turned, selection, rng_for(seed)) == ranks


@pytest.mark.parametrize("name", sorted(RANK_ALLOCATORS))
def test_a_group_that_was_not_chosen_gets_no_rank(name):
    view = a_view(spectra=decaying())
    few = {client.client_id: (LINEAR[0].name, HEAD) for client in view.clients}
    ranks = RANK_ALLOCATORS[name](**QUICK.get(name, {})).allocate(view, few, rng_for(0))
    assert all(set(own) <= {LINEAR[0].name} for own in ranks.values())


# spectral


def test_spectrum_of_factors_is_that_of_their_product():
    rng = np.random.default_rng(0)
    pair = initial_factors((12, 9), 4, rng)._replace(b=rng.normal(size=(12, 4)).astype("f4"))
    np.testing.assert_allclose(
        spectrum(pair), np.linalg.svd(pair.b @ pair.a, compute_uv=False)[:4], rtol=1e-5
    )


def test_spectral_without_limits_covers_the_energy_and_no_more():
    spectra = {group.name: np.zeros(8) for group in LINEAR}
    spectra[LINEAR[3].name] = np.array([10.0, 5.0, 1e-4, 0, 0, 0, 0, 0])
    ranks = allocate(Spectral(exploration=1e-6), a_view(num_clients=1, spectra=spectra))
    assert ranks["client-0"][LINEAR[3].name] == 2
    assert sum(ranks["client-0"].values()) == 2


def test_spectral_starts_evenly_among_groups_that_cost_alike():
    ranks = allocate(Spectral(rank=8, energy=0.9), a_view(num_clients=1))["client-0"]
    square = {ranks[group.name] for group in LINEAR if group.linear == (WIDTH, WIDTH)}
    assert max(square) - min(square) <= 1  # the last component of the budget goes to somebody
    assert 1 <= min(ranks.values()) < 8


@pytest.mark.parametrize("uplink", [1.5e3, 6e3, 40e3, 4e6])
def test_spectral_meets_every_deadline_that_the_head_alone_can_meet(uplink):
    client = a_profile(
        flops_per_second=1e9, uplink_bytes_per_second=uplink, downlink_bytes_per_second=4 * uplink
    )
    budget = RoundBudget(deadline_seconds=12.0, steps=2, batch_size=4)
    view = a_view(clients=(client,), spectra=decaying(), budget=budget)
    ranks = allocate(Spectral(rank=8, energy=1.0), view)["client-0"]
    costs = CostModel.of(view.groups, budget, client)
    plans = plans_of(everything(view)["client-0"], ranks)
    seconds = costs.round_seconds(client, plans)
    head = costs.round_seconds(client, plans_of((HEAD,), {}))
    assert seconds <= max(12.0, head)


def test_spectral_gives_a_faster_line_at_least_as_much_of_everything():
    budget = RoundBudget(deadline_seconds=12.0, steps=2, batch_size=4)
    slow, fast = (a_profile(i, flops_per_second=1e9, **line) for i, line in enumerate([SLOW, FAST]))
    view = a_view(clients=(slow, fast), spectra=decaying(), budget=budget)
    ranks = allocate(Spectral(rank=8, energy=1.0), view)
    assert all(ranks["client-1"][name] >= rank for name, rank in ranks["client-0"].items())
    assert sum(ranks["client-1"].values()) > sum(ranks["client-0"].values())


def test_spectral_leaves_time_for_what_must_be_carried_besides():
    client = a_profile(flops_per_second=1e9, **SLOW)
    budget = RoundBudget(deadline_seconds=20.0, steps=2, batch_size=4)
    view = a_view(clients=(client,), spectra=decaying(), budget=budget)
    loaded = replace(view, carried_bytes={client.client_id: 40_000.0})  # five seconds
    free, left = (
        allocate(Spectral(rank=8, energy=1.0), each)["client-0"] for each in (view, loaded)
    )
    assert sum(left.values()) < sum(free.values())
    plans = plans_of(everything(loaded)["client-0"], left)
    assert expected_seconds(loaded, client, plans) <= 20.0


def test_spectral_is_the_best_choice_within_its_bytes():
    """Against brute force over all rank vectors of two groups that cost alike."""
    view = a_view(num_clients=1, num_blocks=1)
    names = [group.name for group in view.groups if group.linear == (WIDTH, WIDTH)][:2]
    spectra = {names[0]: np.array([5.0, 3.0, 1.0]), names[1]: np.array([4.0, 3.5, 0.5])}
    fixed = 2 * CostModel.of(view.groups, view.budget, view.clients[0]).message_bytes(
        plans_of(names, dict.fromkeys(names, 1))
    )
    for count in range(1, 7):
        policy = Spectral(
            rank=3, energy=1.0, exploration=1e-9, bytes_per_round=fixed + count * 8.0 * 2 * WIDTH
        )
        ranks = policy.allocate(
            replace(view, spectra=spectra), {ClientId("client-0"): tuple(names)}, rng_for(0)
        )["client-0"]
        kept = sum(float(np.square(spectra[name][:rank]).sum()) for name, rank in ranks.items())
        best = max(
            float(np.square(spectra[names[0]][:i]).sum() + np.square(spectra[names[1]][:j]).sum())
            for i in range(4)
            for j in range(4)
            if i + j <= count
        )
        assert kept == pytest.approx(best)


def test_spectral_stays_within_memory():
    view = a_view(spectra=decaying(), clients=(a_profile(memory_bytes=60_000),))
    ranks = allocate(Spectral(rank=8, energy=1.0), view)["client-0"]
    costs = CostModel.of(view.groups, view.budget, view.clients[0])
    assert costs.training_bytes(plans_of(ranks, ranks)) <= 30_000
    roomy = allocate(Spectral(rank=8, energy=1.0), a_view(num_clients=1, spectra=decaying()))
    assert sum(ranks.values()) < sum(roomy["client-0"].values())


# adalora


def seen(ranks, scores) -> Observation:
    return Observation(
        client_id=ClientId("client-0"),
        groups={name: LowRank(rank=rank) for name, rank in ranks.items()},
        answered=True, loss=1.0, bytes_down=1, bytes_up=1, seconds=1.0,
        evidence={
            ParamKey(name, "sensitivity"): np.asarray(score[: ranks[name]])
            for name, score in scores.items()
        },
    )  # fmt: skip


def test_adalora_keeps_its_budget_at_every_round_and_drops_what_matters_least():
    policy = AdaLoRA(rank=6, target=2, warm_up=1, rounds=4)
    view, rng = a_view(num_clients=1), np.random.default_rng(0)
    weight = {group.name: float(i + 1) for i, group in enumerate(LINEAR)}
    scores = {g.name: weight[g.name] * np.sort(rng.random(6))[::-1] + 1e-3 for g in LINEAR}
    silent = LINEAR[-1].name  # whose gradients are zero: it goes first
    scores[silent] = np.zeros(6)
    for count in range(7):
        ranks = allocate(policy, view)["client-0"]
        assert sum(ranks.values()) == max(policy.budget(count, len(LINEAR)), len(LINEAR))
        if count == 2:
            assert ranks[silent] == 1
        state = policy.observe(view, [seen(ranks, scores)], rng_for(0))
        view = replace(view, state=state)
    assert policy.budget(0, 10) == 60
    assert policy.budget(99, 10) == 20
    assert ranks[LINEAR[-2].name] > ranks[LINEAR[0].name]


def test_adalora_resumes_from_its_arrays():
    policy, view = AdaLoRA(rank=4, target=2), a_view(num_clients=1)
    ranks = allocate(policy, view)["client-0"]
    state = policy.observe(
        view, [seen(ranks, {g.name: np.arange(4.0) for g in LINEAR})], rng_for(0)
    )
    assert all(isinstance(value, np.ndarray) for value in state.values())
    copied = {name: value.copy() for name, value in state.items()}
    assert allocate(policy, replace(view, state=copied)) == allocate(
        policy, replace(view, state=state)
    )


# hetlora


def norms(before_tail: float, after_tail: float, rank: int = 8, kept: int = 6) -> np.ndarray:
    rows = np.ones((4, rank), dtype=np.float32)
    rows[:2, kept:], rows[2:, kept:] = before_tail, after_tail
    return rows


@pytest.mark.parametrize(
    ("before", "after", "expected"), [(1.0, 0.5, 6), (0.5, 1.0, 8), (0.0, 0.0, 8)]
)
def test_hetlora_prunes_a_tail_that_shrank(before, after, expected):
    policy, view = HetLoRA(rank=8, gamma=0.8), a_view(num_clients=1)
    assert set(allocate(policy, view)["client-0"].values()) == {8}
    observation = Observation(
        client_id=ClientId("client-0"), groups={LINEAR[0].name: LowRank(rank=8)}, answered=True,
        loss=1.0, bytes_down=1, bytes_up=1, seconds=1.0,
        evidence={ParamKey(LINEAR[0].name, "component-norms"): norms(before, after)},
    )  # fmt: skip
    state = policy.observe(view, [observation], rng_for(0))
    assert set(allocate(policy, replace(view, state=state))["client-0"].values()) == {expected}


def test_hetlora_starts_at_what_the_deadline_allows_and_never_below_its_smallest():
    budget = RoundBudget(deadline_seconds=12.0, steps=2, batch_size=4)
    lines = [SLOW, FAST, {"uplink_bytes_per_second": 1.0, "downlink_bytes_per_second": 1.0}]
    clients = tuple(a_profile(i, flops_per_second=1e9, **line) for i, line in enumerate(lines))
    ranks = allocate(HetLoRA(rank=8, smallest=2), a_view(clients=clients, budget=budget))
    chosen = [max(ranks[f"client-{i}"].values()) for i in range(3)]
    assert chosen[1] == 8
    assert 2 <= chosen[0] < 8
    assert chosen[2] == 2


def test_every_adaptive_policy_survives_a_round_nobody_answered():
    for policy in (kind(**QUICK.get(name, {})) for name, kind in RANK_ALLOCATORS.items()):
        if isinstance(policy, Adaptive):
            view = a_view()
            missed = Observation(
                client_id=ClientId("client-0"), groups={LINEAR[0].name: LowRank(rank=2)},
                answered=False, loss=None, bytes_down=1, bytes_up=0, seconds=9.0, evidence={},
            )  # fmt: skip
            state = policy.observe(view, [missed], rng_for(0))
            policy.allocate(replace(view, state=state), everything(view), rng_for(1))


# eva


def sketch(inputs: np.ndarray, rank: int) -> np.ndarray:
    _, values, vectors = np.linalg.svd(inputs, full_matrices=False)
    return (values[:rank, None] * vectors[:rank]).astype(np.float32)


def eva_view(client_inputs: list[dict], rank: int):
    evidence = {
        ClientId(f"client-{i}"): {
            ParamKey(name, "input-spectrum"): sketch(x, rank) for name, x in inputs.items()
        }
        for i, inputs in enumerate(client_inputs)
    }
    return a_view(num_clients=len(client_inputs), evidence=evidence)


def start(rank: int) -> dict:
    tensors = {}
    for group in LINEAR:
        pair = initial_factors(group.linear, min(rank, *group.linear), rng_for(0, group.name))
        tensors |= zip(keys_of(group.name), pair, strict=True)
    return tensors


def inputs(seed: int, width: dict | None = None) -> dict:
    rng = np.random.default_rng(seed)
    decay = {g.name: 0.5 if i % 2 else 0.9 for i, g in enumerate(LINEAR)}
    return {
        g.name: rng.normal(size=(60, g.linear[1])) * decay[g.name] ** np.arange(g.linear[1])
        for g in LINEAR
    }


def test_eva_merges_clients_as_if_their_inputs_were_pooled():
    parts, policy = [inputs(0), inputs(1)], Eva(rank=4, rho=2)
    tensors, _ = policy.initialize(eva_view(parts, INNER), start(8))
    pooled = {name: np.vstack([part[name] for part in parts]) for name in parts[0]}
    alone, _ = policy.initialize(eva_view([pooled], INNER), start(8))
    for group in LINEAR:
        a, b = factors_of(tensors, group.name)
        same = factors_of(alone, group.name).a
        np.testing.assert_allclose(np.abs(a @ same.T), ROW_NORM**2 * np.eye(len(a)), atol=1e-4)
        np.testing.assert_allclose(a @ a.T, ROW_NORM**2 * np.eye(len(a)), atol=1e-5)
        assert not b.any()


def test_eva_spends_the_budget_where_the_inputs_need_directions():
    policy = Eva(rank=3, rho=2)
    view = eva_view([inputs(0)], 6)
    _, state = policy.initialize(view, start(6))
    ranks = allocate(policy, replace(view, state=state))["client-0"]
    assert sum(ranks.values()) == 3 * len(LINEAR)
    assert max(ranks.values()) <= 6
    flat, steep = LINEAR[0].name, LINEAR[1].name
    assert ranks[flat] > ranks[steep]


def test_eva_without_redistribution_is_uniform_and_two_like_clients_are_one():
    policy = Eva(rank=3, rho=1)
    one, state = policy.initialize(eva_view([inputs(0)], 3), start(3))
    assert {int(rank) for rank in state.values()} == {3}
    two, _ = policy.initialize(eva_view([inputs(0), inputs(0)], 3), start(3))
    for key, value in one.items():
        np.testing.assert_allclose(np.abs(two[key]), np.abs(value), atol=1e-5)
