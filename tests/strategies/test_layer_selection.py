"""Layer selectors: a contract for all, an oracle for each."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies.catalog import LAYER_SELECTORS
from strategies.cost import CostModel
from strategies.layer_selection.attention_only import AttentionOnly
from strategies.layer_selection.blocks import is_attention
from strategies.layer_selection.fedselect import FedSelect
from strategies.layer_selection.fisher import Fisher
from strategies.layer_selection.green import Green, knapsack
from strategies.layer_selection.half import Half
from strategies.layer_selection.selective import Selective, objective, solve
from strategies.protocols import Adaptive, Probing
from strategies.rng import rng_for
from strategies.types import (
    HEAD,
    ClientId,
    Dense,
    LowRank,
    Observation,
    ParamKey,
    RoundBudget,
)
from tests.strategies.model_of_blocks import a_profile, a_view, everything, linear

STATISTICS = ("gradient-energy", "signal-to-noise", "relative-gradient", "fisher", "descent")
BLOCK_WISE = [name for name, kind in LAYER_SELECTORS.items() if hasattr(kind, "blocks")]


def evidence_of(view, seed: int = 0, statistics=STATISTICS) -> dict:
    rng = np.random.default_rng(seed)
    return {
        client.client_id: {
            ParamKey(group.name, statistic): np.array(rng.exponential())
            for group in view.groups
            for statistic in statistics
        }
        for client in view.clients
    }


def chosen_blocks(names) -> list[int]:
    return sorted({int(name.split(".")[2]) for name in names if name.startswith("encoder.layer.")})


def select(selector, view):
    return selector.select(view, rng_for(0))


@pytest.mark.parametrize("name", sorted(LAYER_SELECTORS))
@given(
    seed=st.integers(0, 5), clients=st.integers(1, 4), blocks=st.integers(1, 4), heard=st.booleans()
)
def test_contract(name, seed, clients, blocks, heard):
    selector = LAYER_SELECTORS[name]()
    view = a_view(num_clients=clients, num_blocks=blocks, seed=seed)
    if heard:
        view = replace(view, evidence=evidence_of(view, seed))
    selection = select(selector, view)
    assert selection == select(selector, view)
    assert set(selection) == {client.client_id for client in view.clients}
    order = [group.name for group in view.groups]
    for names in selection.values():
        assert HEAD in names
        assert len(set(names)) == len(names)
        assert set(names) <= set(order)
    turned = replace(view, clients=view.clients[::-1])
    assert {c: set(n) for c, n in select(selector, turned).items()} == {
        c: set(n) for c, n in selection.items()
    }


@pytest.mark.parametrize("name", BLOCK_WISE)
@given(budget=st.integers(1, 5), heard=st.booleans())
def test_budgets_in_blocks_are_kept(name, budget, heard):
    view = a_view(num_clients=3, num_blocks=4)
    if heard:
        view = replace(view, evidence=evidence_of(view))
    for names in select(LAYER_SELECTORS[name](blocks=budget), view).values():
        found = chosen_blocks(names)
        assert 1 <= len(found) <= min(budget, 4)
        if name != "selective":
            assert len(found) == min(budget, 4)
        if budget >= 4 and name != "selective":
            assert set(names) == set(everything(view)[ClientId("client-0")])


@pytest.mark.parametrize("name", BLOCK_WISE)
def test_a_client_short_of_time_trains_fewer_blocks(name):
    slow = {"uplink_bytes_per_second": 1e6, "downlink_bytes_per_second": 1e6}
    clients = (
        a_profile(0, flops_per_second=1e9, **slow),
        a_profile(1, flops_per_second=4e4, **slow),
    )
    budget = RoundBudget(deadline_seconds=2.2, steps=1, batch_size=1)
    view = a_view(clients=clients, num_blocks=4, budget=budget)
    view = replace(view, evidence=evidence_of(view))
    selection = select(LAYER_SELECTORS[name](blocks=4), view)
    counts = [len(chosen_blocks(selection[client.client_id])) for client in clients]
    assert 1 <= counts[1] < counts[0]


@pytest.mark.parametrize("name", sorted(LAYER_SELECTORS))
def test_probes_come_as_often_as_asked_for(name):
    selector = LAYER_SELECTORS[name]()
    if isinstance(selector, Probing):
        assert selector.question(3, 0).batches == selector.batches
        rounds = [r for r in range(6) if LAYER_SELECTORS[name]().question(0, r)]
        assert rounds == ([0] if name == "fisher" else list(range(6)))


def test_ends_of_the_model():
    view = a_view(num_clients=1, num_blocks=5)
    wanted = {"top": [3, 4], "bottom": [0, 1], "both": [0, 4]}
    for name, blocks in wanted.items():
        names = select(LAYER_SELECTORS[name](blocks=2), view)["client-0"]
        assert chosen_blocks(names) == blocks
    names = select(LAYER_SELECTORS["both"](blocks=3), view)["client-0"]
    assert chosen_blocks(names) == [0, 1, 4]


def test_random_blocks_are_drawn_per_client_and_round_and_evenly():
    counts, draws = Counter(), set()
    for index in range(200):
        view = a_view(num_clients=3, num_blocks=4, round_index=index)
        for client, names in select(LAYER_SELECTORS["random"](blocks=2), view).items():
            counts.update(chosen_blocks(names))
            draws.add((client, tuple(chosen_blocks(names))))
    assert len(draws) == 3 * 6
    assert all(count == pytest.approx(300, rel=0.15) for count in counts.values())
    alone = a_view(num_clients=1, num_blocks=4, round_index=7)
    among = a_view(num_clients=3, num_blocks=4, round_index=7)
    random = LAYER_SELECTORS["random"](blocks=2)
    assert select(random, alone)["client-0"] == select(random, among)["client-0"]


@pytest.mark.parametrize("frozen", range(5))
def test_telly_freezes_the_bottom(frozen):
    view = a_view(num_clients=1, num_blocks=4)
    names = select(LAYER_SELECTORS["telly"](frozen=frozen), view)["client-0"]
    assert chosen_blocks(names) == list(range(frozen, 4))
    assert HEAD in names


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("encoder.layer.0.attention.self.query", True),
        ("encoder.layer.0.attention.output.dense", True),
        ("encoder.layer.0.intermediate.dense", False),
        ("encoder.layer.0.output.dense", False),
        ("distilbert.transformer.layer.0.attention.q_lin", True),
        ("distilbert.transformer.layer.0.ffn.lin1", False),
        ("vit.encoder.layer.3.attention.attention.value", True),
        ("transformer.h.0.attn.c_attn", True),
        ("transformer.h.0.mlp.c_proj", False),
        ("model.layers.0.self_attn.o_proj", True),
        ("model.layers.0.mlp.down_proj", False),
        ("model.decoder.layers.0.self_attn.q_proj", True),
        ("model.decoder.layers.0.fc1", False),
        ("encoder.block.0.layer.0.SelfAttention.q", True),
        ("encoder.block.0.layer.1.DenseReluDense.wi", False),
    ],
)
def test_attention_is_told_by_its_path(path, expected):
    assert is_attention(linear(path, 0, (4, 4))) is expected


def test_attention_only_leaves_the_rest_alone():
    view = a_view(num_clients=1)
    names = select(AttentionOnly(), view)["client-0"]
    assert len(names) == 3 * 4 + 1
    specs = {group.name: group for group in view.groups}
    weights = sum(np.prod(specs[n].parts["weight"]) for n in names if n != HEAD)
    whole = sum(np.prod(g.parts["weight"]) for g in view.groups if g.linear)
    assert weights / whole == pytest.approx(1 / 2)  # 4h² of 8h² at twice the width inside


@pytest.mark.parametrize(
    ("name", "statistic"), [("snr", "signal-to-noise"), ("rgn", "relative-gradient")]
)
def test_scored_blocks_are_each_clients_own_best(name, statistic):
    view = a_view(num_clients=2, num_blocks=4)
    evidence = {
        ClientId(f"client-{i}"): {
            ParamKey(group.name, statistic): np.array(float(block == wanted))
            for group in view.groups
            if (block := group.block) is not None
        }
        for i, wanted in enumerate((1, 2))
    }
    selection = select(LAYER_SELECTORS[name](blocks=1), replace(view, evidence=evidence))
    assert [chosen_blocks(selection[f"client-{i}"]) for i in range(2)] == [[1], [2]]


def test_a_client_whose_probe_failed_follows_the_others():
    view = a_view(num_clients=3, num_blocks=4)
    evidence = evidence_of(view)
    for name in ("client-0", "client-1"):
        for key in evidence[name]:
            evidence[name][key] = np.array(float(".1." in key.group))
    del evidence["client-2"]
    selection = select(LAYER_SELECTORS["rgn"](blocks=1), replace(view, evidence=evidence))
    assert chosen_blocks(selection["client-2"]) == [1]


# fisher


def test_fisher_is_one_set_for_all_weighted_by_examples_and_fixed_for_the_task():
    view = a_view(num_clients=2, num_blocks=3)
    many = replace(view.clients[1], num_train=(1000,))
    view = replace(view, clients=(view.clients[0], many))
    evidence = {
        ClientId(client): {
            ParamKey(g.name, "fisher"): np.array(value * (g.block == block)) for g in view.groups
        }
        for client, value, block in (("client-0", 9.0, 0), ("client-1", 1.0, 2))
    }
    probed = replace(view, evidence=evidence)
    selector = Fisher(blocks=1)
    selection = select(selector, probed)
    assert {tuple(chosen_blocks(names)) for names in selection.values()} == {(2,)}
    state = selector.observe(probed, [], rng_for(0))
    strangers = (a_profile(7), a_profile(8))
    later = replace(view, clients=strangers, evidence={}, state=state, round_index=1)
    assert {tuple(chosen_blocks(n)) for n in select(selector, later).values()} == {(2,)}
    profile = replace(strangers[0], num_train=(1, 1))
    next_task = replace(later, task_index=1, clients=(profile,), evidence={})
    assert chosen_blocks(select(selector, next_task)[profile.client_id]) == [2]  # the top: unknown


def test_fisher_does_not_favour_large_blocks():
    view = a_view(num_clients=1, num_blocks=2)
    wide = [
        replace(g, linear=(80, 80), parts={"weight": (80, 80)}) if g.block == 1 else g
        for g in view.groups
    ]
    evidence = {
        ClientId("client-0"): {
            ParamKey(g.name, "fisher"): np.array(2.0 if g.block == 1 else 1.0) for g in wide
        }
    }
    view = replace(view, groups=tuple(wide), evidence=evidence)
    assert chosen_blocks(select(Fisher(blocks=1), view)["client-0"]) == [0]


# selective


def brute_force(energy, budgets, weight) -> float:
    _count, width = energy.shape
    rows = [
        [m for m in product([False, True], repeat=width) if sum(m) <= budget] for budget in budgets
    ]
    return max(objective(np.array(masks), energy, weight) for masks in product(*rows))


def test_selective_against_brute_force():
    rng, optimal, worst = np.random.default_rng(0), 0, 0.0
    for _ in range(60):
        energy, budgets = rng.exponential(size=(3, 4)), rng.integers(1, 4, size=3)
        weight = float(rng.choice([0.0, 0.05, 0.2, 1.0]))
        found = objective(solve(energy, budgets, weight), energy, weight)
        best = brute_force(energy, budgets, weight)
        assert found <= best + 1e-9
        gap = (best - found) / max(abs(best), 1e-9)
        optimal, worst = optimal + (gap < 1e-9), max(worst, gap)
    assert optimal >= 57
    assert worst < 0.1


def test_the_objective_is_the_papers():
    rng = np.random.default_rng(1)
    masks, energy = rng.random((4, 5)) < 0.5, rng.exponential(size=(4, 5))
    apart = sum(np.abs(a.astype(int) - b.astype(int)).sum() for a in masks for b in masks)
    assert objective(masks, energy, 0.3) == pytest.approx((masks * energy).sum() - 0.15 * apart)


def test_selective_without_agreement_is_everybodys_own_top():
    view = a_view(num_clients=3, num_blocks=4)
    view = replace(view, evidence=evidence_of(view))
    selection = select(Selective(blocks=2, agreement=0.0), view)
    for client in view.clients:
        scores = [
            sum(
                float(view.evidence[client.client_id][ParamKey(g.name, "gradient-energy")])
                for g in view.groups
                if g.block == block
            )
            for block in range(4)
        ]
        assert chosen_blocks(selection[client.client_id]) == sorted(
            np.argsort(scores)[-2:].tolist()
        )


def test_selective_with_much_agreement_is_one_set_for_all():
    view = a_view(num_clients=4, num_blocks=4)
    view = replace(view, evidence=evidence_of(view, 3))
    selection = select(Selective(blocks=2, agreement=1e3), view)
    assert len({tuple(chosen_blocks(names)) for names in selection.values()}) == 1


def test_selective_with_all_blocks_and_no_agreement_trains_all():
    view = a_view(num_clients=2, num_blocks=3)
    view = replace(view, evidence=evidence_of(view))
    selection = select(Selective(blocks=3, agreement=0.0), view)
    assert {c: set(n) for c, n in selection.items()} == {
        c: set(n) for c, n in everything(view).items()
    }


# green


def cheapest_exhaustive(importance, own, above, budget) -> float:
    best = 0.0
    for mask in product([False, True], repeat=len(own)):
        picked = np.flatnonzero(mask)
        if len(picked) and own[picked].sum() + above[picked[-1]] <= budget:
            best = max(best, float(importance[picked].sum()))
    return best


@given(seed=st.integers(0, 40), items=st.integers(1, 9))
def test_the_knapsack_against_brute_force(seed, items):
    rng = np.random.default_rng(seed)
    importance = rng.normal(0.5, 1.0, size=items)
    own, above = rng.uniform(1, 10, size=items), np.cumsum(rng.uniform(1, 10, size=items))
    budget = float(rng.uniform(0, own.sum() + above[-1]))
    picked = knapsack(importance, own, above, budget)
    assert picked == sorted(set(picked))
    if picked:
        assert own[picked].sum() + above[picked[-1]] <= budget + 1e-9
    exact = cheapest_exhaustive(importance, own, above, budget)
    rounded = cheapest_exhaustive(importance, own, above, budget * (1 - (items + 1) / 1000))
    found = float(importance[picked].sum())
    assert rounded - 1e-9 <= found <= exact + 1e-9


def with_descent(view, value):
    evidence = {
        client.client_id: {
            ParamKey(group.name, "descent"): np.array(float(value(group))) for group in view.groups
        }
        for client in view.clients
    }
    return replace(view, evidence=evidence)


def test_green_with_the_whole_budget_takes_all_that_helps():
    view = a_view(num_clients=1, num_blocks=3)
    useful = with_descent(view, lambda g: -1.0 if g.block == 1 else 1.0)
    names = select(Green(share=1.0), useful)["client-0"]
    assert chosen_blocks(names) == [0, 2]
    assert len(names) == 2 * 6 + 1


@pytest.mark.parametrize("share", [0.4, 0.5, 0.6, 0.75, 0.9])
def test_green_keeps_its_share_by_the_cost_model(share):
    view = a_view(num_clients=1, num_blocks=6)
    rng = np.random.default_rng(2)
    view = with_descent(view, lambda g: rng.exponential())
    names = select(Green(share=share), view)["client-0"]
    costs = CostModel.of(view.groups, view.budget, view.clients[0])

    def plans(chosen):
        return {n: Dense() if n == HEAD else LowRank(rank=8) for n in chosen}

    full = costs.flops_per_token(plans(everything(view)["client-0"]))
    spent = costs.flops_per_token(plans(names))
    forward = costs.flops_per_token({})
    assert spent <= max(share * full, forward + 0.05 * (full - forward)) * (1 + 1e-9)


def test_green_goes_deep_only_for_what_is_worth_it():
    view = a_view(num_clients=1, num_blocks=4)
    deep = with_descent(view, lambda g: 100.0 if g.block == 0 else 1.0)
    shallow = with_descent(view, lambda g: 1.5 if g.block == 0 else 1.0)
    assert 0 in chosen_blocks(select(Green(share=0.95), deep)["client-0"])
    assert 0 not in chosen_blocks(select(Green(share=0.4), shallow)["client-0"])


def test_green_follows_the_clients_speed():
    line = {"uplink_bytes_per_second": 1e9, "downlink_bytes_per_second": 1e9}
    clients = tuple(a_profile(i, flops_per_second=s, **line) for i, s in enumerate((1e9, 6e4)))
    budget = RoundBudget(deadline_seconds=2.0, steps=1, batch_size=1)
    view = with_descent(a_view(clients=clients, num_blocks=4, budget=budget), lambda g: 1.0)
    selection = select(Green(share=1.0), view)
    assert len(selection["client-1"]) < len(selection["client-0"])


# half


def test_half_is_half_of_every_block_by_category_and_redrawn_per_task():
    view, counts = a_view(num_clients=1, num_blocks=4), Counter()
    draws = set()
    for task in range(150):
        names = select(Half(), replace(view, task_index=task))["client-0"]
        again = select(Half(), replace(view, task_index=task, round_index=3))["client-0"]
        assert names == again
        for block in range(4):
            own = [n for n in names if n.startswith(f"encoder.layer.{block}.")]
            assert sum("attention" in n for n in own) == 2
            assert sum("attention" not in n for n in own) == 1
        counts.update(names)
        draws.add(names)
    assert len(draws) > 100
    assert all(n == 150 if name == HEAD else 50 < n < 100 for name, n in counts.items())


def test_complementary_halves_make_a_whole():
    view = a_view(num_clients=8)
    found = {frozenset(names) for names in select(Half(halves="complementary"), view).values()}
    assert len(found) == 2
    first, second = found
    assert first & second == {HEAD}
    assert first | second == set(everything(view)["client-0"])


# fedselect


def moved(view, client="client-0", largest=0) -> Observation:
    names = [group.name for group in view.groups if group.linear]
    drift = {
        ParamKey(name, "drift"): np.array(10.0 if index == largest else 1.0 / (index + 2))
        for index, name in enumerate(names)
    }
    return Observation(
        client_id=ClientId(client), groups={}, answered=True, loss=1.0, bytes_down=1, bytes_up=1,
        seconds=1.0, evidence=drift,
    )  # fmt: skip


def after(selector, view, rounds):
    masks = []
    for _ in range(rounds):
        view = replace(view, state=selector.observe(view, [moved(view, largest=5)], rng_for(0)))
        masks.append(set(selector.kept(view)["client-0"]))
    return view, masks


def test_fedselect_grows_what_moves_most_and_never_shrinks():
    view, masks = after(FedSelect(share=0.25, limit=0.5, every=2), a_view(), 12)
    names = [group.name for group in view.groups if group.linear]
    assert not masks[0]
    assert names[5] in masks[1]
    assert len(masks[1]) == 5  # a quarter of 18, rounded up
    assert all(a <= b for a, b in pairwise(masks))
    assert len(masks[-1]) == 9
    assert all(
        parts[:2] == ("lora_A", "lora_B") for parts in FedSelect().kept(view)["client-0"].values()
    )
    assert not FedSelect().kept(view)["client-1"]


@pytest.mark.parametrize("changes", [{"share": 0.0}, {"limit": 0.0}])
def test_fedselect_without_share_or_limit_is_plain_averaging(changes):
    view, masks = after(FedSelect(every=1, **changes), a_view(), 4)
    assert not any(masks)
    assert select(FedSelect(), view) == select(LAYER_SELECTORS["all"](), view)


def test_fedselect_may_keep_everything_but_the_head():
    _, masks = after(FedSelect(share=1.0, limit=1.0, every=1), a_view(), 1)
    assert len(masks[0]) == 18
    assert HEAD not in masks[0]


def test_selectors_that_learn_survive_a_round_nobody_answered():
    for kind in LAYER_SELECTORS.values():
        selector, view = kind(), a_view()
        if isinstance(selector, Adaptive):
            silent = replace(moved(view), answered=False, evidence={})
            state = selector.observe(view, [silent], rng_for(0))
            select(selector, replace(view, state=state))
