"""Layer selectors where it is tight: the whole budget, ties, silence, models without a head."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest

from strategies.catalog import LAYER_SELECTORS
from strategies.cost import CostModel
from strategies.layer_selection.fedselect import FedSelect
from strategies.layer_selection.fisher import Fisher
from strategies.layer_selection.green import Green
from strategies.layer_selection.half import Half
from strategies.layer_selection.selective import Selective
from strategies.layer_selection.telly import Telly
from strategies.rng import rng_for
from strategies.types import (
    HEAD,
    ClientId,
    Dense,
    GroupName,
    LowRank,
    ParamKey,
    RoundBudget,
    RoundView,
)
from tests.strategies.model_of_blocks import a_profile, a_view, everything, linear
from tests.strategies.test_layer_selection import (
    chosen_blocks,
    evidence_of,
    moved,
    select,
    with_descent,
)

POOLER = GroupName("bert.pooler.dense")
FAST_LINE = {"uplink_bytes_per_second": 1e9, "downlink_bytes_per_second": 1e9}
STATISTIC_OF = {
    "snr": "signal-to-noise",
    "rgn": "relative-gradient",
    "fisher": "fisher",
    "selective": "gradient-energy",
    "green": "descent",
}


def with_pooler(view: RoundView) -> RoundView:
    return replace(view, groups=(*view.groups[:-1], linear(POOLER, None, (8, 8)), view.groups[-1]))


def without_head(view: RoundView) -> RoundView:
    return replace(view, groups=tuple(g for g in view.groups if g.name != HEAD))


def query_scores(view: RoundView, statistic, rows) -> dict:
    """Client i scores block b with ``rows[i][b]``; clients after the rows reported nothing."""
    return {
        ClientId(f"client-{index}"): {
            ParamKey(group.name, statistic): np.array(row[group.block])
            for group in view.groups
            if group.role == "query"
        }
        for index, row in enumerate(rows)
    }


# every selector


@pytest.mark.parametrize("name", sorted(LAYER_SELECTORS))
def test_inputs_are_left_as_they_were(name):
    view = a_view(num_clients=3)
    view = replace(view, evidence=evidence_of(view))
    before = copy.deepcopy(view)
    select(LAYER_SELECTORS[name](), view)
    assert view.clients == before.clients
    assert view.groups == before.groups
    assert view.state == before.state
    for client, found in before.evidence.items():
        assert view.evidence[client].keys() == found.keys()
        assert all(np.array_equal(view.evidence[client][key], found[key]) for key in found)


@pytest.mark.parametrize("name", sorted(LAYER_SELECTORS))
@pytest.mark.parametrize("heard", [True, False])
def test_everybody_trains_something_of_a_model_without_a_head(name, heard):
    view = without_head(a_view(num_clients=3))
    if heard:
        view = replace(view, evidence=evidence_of(view))
    assert all(select(LAYER_SELECTORS[name](), view).values())


@pytest.mark.parametrize(
    "name",
    # Of these ``green`` chooses single tensors and lets the pooler compete.
    sorted(set(LAYER_SELECTORS) - {"green"}),
)
def test_what_lies_outside_the_blocks_is_always_trained(name):
    for task in range(6):
        clients = tuple(a_profile(index, num_train=(9,) * 6) for index in range(3))
        view = with_pooler(a_view(clients=clients, task_index=task))
        view = replace(view, evidence=evidence_of(view))
        for names in select(LAYER_SELECTORS[name](), view).values():
            assert {POOLER, HEAD} <= set(names)


@pytest.mark.parametrize("name", sorted(STATISTIC_OF))
def test_who_comes_first_breaks_no_tie(name):
    """0.1 + 0.2 + 0.3 is not 0.3 + 0.2 + 0.1: a mean over clients must be formed in one order."""
    view = a_view(num_clients=4, num_blocks=2)
    rows = [(0.1, 0.3), (0.2, 0.2), (0.3, 0.1)]
    clients = tuple(a_profile(index, num_train=(10,)) for index in range(4))
    view = replace(view, clients=clients, evidence=query_scores(view, STATISTIC_OF[name], rows))
    selector = LAYER_SELECTORS[name]() if name == "green" else LAYER_SELECTORS[name](blocks=1)
    assert select(selector, view) == select(selector, replace(view, clients=clients[::-1]))


# fisher


def joint_view(held: tuple[tuple[int, ...], ...]) -> RoundView:
    """A round of joint training over three tasks, planned as the last of them."""
    clients = tuple(a_profile(index, num_train=own) for index, own in enumerate(held))
    view = a_view(clients=clients, num_blocks=2, task_index=2, budget=RoundBudget(tasks=(0, 1, 2)))
    return replace(view, evidence=query_scores(view, "fisher", [(1.0, 0.0), (0.0, 1.0)]))


@pytest.mark.parametrize(
    ("held", "expected"), [(((90, 0, 1), (0, 0, 2)), 0), (((2, 0, 2), (0, 90, 1)), 1)]
)
def test_fisher_weighs_examples_of_all_tasks_that_are_trained(held, expected):
    for names in select(Fisher(blocks=1), joint_view(held)).values():
        assert chosen_blocks(names) == [expected]


def test_fisher_serves_a_cohort_without_examples_of_the_last_task():
    selection = select(Fisher(blocks=1), joint_view(((90, 0, 0), (5, 5, 0))))
    assert {tuple(chosen_blocks(names)) for names in selection.values()} == {(0,)}


def test_fisher_without_any_examples_weighs_clients_alike():
    selection = select(Fisher(blocks=1), joint_view(((0, 0, 0), (0, 0, 0))))
    assert {tuple(chosen_blocks(names)) for names in selection.values()} == {(1,)}


def test_fisher_chooses_anew_for_the_next_task():
    clients = tuple(a_profile(index, num_train=(9, 9)) for index in range(2))
    view = a_view(clients=clients, num_blocks=2)
    first = replace(view, evidence=query_scores(view, "fisher", [(0.0, 1.0)] * 2))
    state = Fisher(blocks=1).observe(first, [], rng_for(0))
    found = query_scores(view, "fisher", [(1.0, 0.0)] * 2)
    later = replace(view, evidence=found, state=state)
    for task, expected in ((0, 1), (1, 0)):
        selection = select(Fisher(blocks=1), replace(later, task_index=task))
        assert chosen_blocks(selection["client-0"]) == [expected]


# selective


@pytest.mark.parametrize("agreement", [0.0, 0.1, 10.0])
def test_selective_with_all_blocks_trains_all_whatever_agreement_is_worth(agreement):
    view = a_view(num_clients=3)
    view = replace(view, evidence=evidence_of(view))
    selection = select(Selective(blocks=3, agreement=agreement), view)
    assert {c: set(n) for c, n in selection.items()} == {
        c: set(n) for c, n in everything(view).items()
    }


# telly


def test_telly_without_a_head_leaves_the_last_block():
    names = select(Telly(frozen=7), without_head(a_view(num_clients=1)))["client-0"]
    assert chosen_blocks(names) == [2]


# half


def test_a_pooler_does_not_change_which_half_is_drawn():
    for task in range(8):
        view = a_view(num_clients=1, task_index=task)
        plain = set(select(Half(), view)["client-0"])
        assert set(select(Half(), with_pooler(view))["client-0"]) == plain | {POOLER}


def test_complementary_halves_share_what_lies_outside_the_blocks():
    view = with_pooler(a_view(num_clients=8))
    found = {frozenset(names) for names in select(Half(halves="complementary"), view).values()}
    first, second = found
    assert first & second == {HEAD, POOLER}


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("task", range(4))
def test_halves_are_the_same_for_all_or_make_a_whole_whatever_the_draw(seed, task):
    view = a_view(num_clients=8, num_blocks=5, task_index=task, seed=seed)
    blocks = {g.name for g in view.groups if g.kind == "linear" and g.block is not None}
    (same,) = {frozenset(names) for names in select(Half(), view).values()}
    assert same == frozenset(select(Half(), replace(view, clients=view.clients[2:3]))["client-2"])
    found = {frozenset(names) for names in select(Half(halves="complementary"), view).values()}
    one, other = (names & blocks for names in found)
    assert same & blocks in (one, other)
    assert not one & other
    assert one | other == blocks


@pytest.mark.parametrize("num_blocks", [4, 5])
def test_half_of_three_is_two_in_half_of_the_blocks_and_one_in_the_others(num_blocks):
    gates = [linear(f"encoder.layer.{i}.gate", i, (16, 8)) for i in range(num_blocks)]
    view = a_view(num_clients=1, num_blocks=num_blocks)
    for task in range(10):
        whole = replace(view, groups=(*gates, *view.groups), task_index=task)
        names = select(Half(), whole)["client-0"]
        counts = [
            sum(n.startswith(f"encoder.layer.{i}.") and "attention" not in n for n in names)
            for i in range(num_blocks)
        ]
        assert sorted(counts) == [1] * (num_blocks // 2) + [2] * ((num_blocks + 1) // 2)


# fedselect


def test_fedselect_counts_only_rounds_a_client_answered():
    selector, view = FedSelect(share=0.25, limit=0.5, every=2), a_view()
    silent = replace(moved(view), answered=False, evidence={})
    for seen in (silent, moved(view), silent, silent):
        view = replace(view, state=selector.observe(view, [seen], rng_for(0)))
        assert not selector.kept(view)["client-0"]
    view = replace(view, state=selector.observe(view, [moved(view)], rng_for(0)))
    assert selector.kept(view)["client-0"]


# green


@pytest.mark.parametrize("num_blocks", [1, 3, 6, 24])
def test_green_with_the_whole_budget_takes_everything_if_all_helps(num_blocks):
    view = with_descent(a_view(num_clients=1, num_blocks=num_blocks), lambda g: 1.0)
    names = select(Green(share=1.0), view)["client-0"]
    assert set(names) == set(everything(view)["client-0"])


def test_green_counts_the_batches_a_small_client_really_has():
    """It holds ten examples, so a batch of a hundred costs it what one of ten does."""

    def chosen(batch_size: int) -> tuple[GroupName, ...]:
        client = a_profile(0, num_train=(10,), flops_per_second=1e6, **FAST_LINE)
        budget = RoundBudget(deadline_seconds=1.0, tasks=(0,), batch_size=batch_size)
        view = a_view(clients=(client,), num_blocks=4, budget=budget)
        return select(Green(share=1.0), with_descent(view, lambda g: 1.0))["client-0"]

    assert len(chosen(10)) > 1
    assert chosen(100) == chosen(10)


@pytest.mark.parametrize("share", [0.05, 0.5, 0.8, 1.0])
def test_green_trains_the_top_its_share_can_buy_while_nothing_is_known(share):
    view = a_view(num_clients=1, num_blocks=6)
    costs = CostModel.of(view.groups, view.budget, view.clients[0])

    def flops(count: int) -> float:
        names = select(LAYER_SELECTORS["top"](blocks=count), view)["client-0"]
        return costs.flops_per_token({n: Dense() if n == HEAD else LowRank(rank=8) for n in names})

    found = chosen_blocks(Green(share=share).select(view, rng_for(0))["client-0"])
    fitting = [count for count in range(1, 7) if flops(count) <= share * flops(6) * (1 + 1e-9)]
    assert found == list(range(6 - max(fitting, default=1), 6))


def test_green_without_a_head_and_without_hope_trains_the_last_tensor():
    view = without_head(a_view(num_clients=1))
    names = select(Green(), with_descent(view, lambda g: -1.0))["client-0"]
    assert names == (view.groups[-1].name,)
