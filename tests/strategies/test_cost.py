"""The cost model against counts done by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from strategies.cost import CostModel, cautious
from strategies.types import HEAD, Dense, LowRank, RoundBudget
from tests.strategies.model_of_blocks import INNER, WIDTH, a_profile, groups_of

GROUPS = groups_of(num_blocks=3)
BUDGET = RoundBudget(steps=4, batch_size=2, bytes_per_value_up=1.0, bytes_per_value_down=2.0)
COSTS = CostModel.of(GROUPS, BUDGET, a_profile())
BLOCK_PRODUCTS = 2 * (4 * WIDTH * WIDTH + 2 * WIDTH * INNER)
HEAD_PRODUCTS = 2 * 5 * WIDTH
FORWARD = 3 * BLOCK_PRODUCTS + HEAD_PRODUCTS


def names(block: int) -> list:
    return [group.name for group in GROUPS if group.block == block]


def test_values_and_bytes_follow_the_plan():
    query = names(0)[0]
    assert COSTS.num_values({query: LowRank(rank=3)}) == 3 * (WIDTH + WIDTH)
    assert COSTS.num_values({query: LowRank(rank=3, train_a=False)}) == 3 * WIDTH
    assert COSTS.num_values({query: Dense()}) == WIDTH * WIDTH + WIDTH
    half = {query: LowRank(rank=3, train_a=False)}
    assert COSTS.bytes_up(half) == 3 * WIDTH
    assert COSTS.bytes_down(half) == 2 * 3 * (WIDTH + WIDTH)  # the frozen factor is sent too


def test_the_deepest_trained_group_sets_the_backward_cost():
    top = COSTS.flops_per_token({HEAD: Dense()})
    assert top == FORWARD + HEAD_PRODUCTS  # the head's own weight gradient, nothing below
    last = COSTS.flops_per_token({names(2)[-1]: Dense()})
    assert last == FORWARD + HEAD_PRODUCTS + 2 * WIDTH * INNER
    first = COSTS.flops_per_token({names(0)[0]: Dense()})
    above = FORWARD - 2 * WIDTH * WIDTH
    assert first == FORWARD + above + 2 * WIDTH * WIDTH


def test_lora_pays_for_its_factors_and_not_for_the_weight():
    query = names(0)[0]
    dense = COSTS.flops_per_token({query: Dense()})
    low = COSTS.flops_per_token({query: LowRank(rank=2)})
    assert low - dense == 3 * 2 * 2 * (WIDTH + WIDTH) - 2 * WIDTH * WIDTH


def test_steps_scale_with_tokens():
    assert COSTS.flops_per_step({HEAD: Dense()}) == 2 * 12.0 * COSTS.flops_per_token(
        {HEAD: Dense()}
    )


def test_blocks_below_all_trained_ones_are_paid_once_per_example_where_they_are_kept():
    last = {names(2)[-1]: Dense()}
    assert COSTS.flops_below(last) == 2 * BLOCK_PRODUCTS
    assert COSTS.flops_below({HEAD: Dense()}) == FORWARD - HEAD_PRODUCTS
    assert COSTS.flops_below({names(0)[-1]: Dense()}) == COSTS.flops_below({}) == 0
    budget = replace(BUDGET, tasks=(0,), steps=10)  # 10 examples, each met twice
    plain, keeps = (CostModel.of(GROUPS, budget, a_profile(0, keeps=k)) for k in (False, True))
    tokens = 2 * 12.0
    saved = plain.flops_per_step(last) - keeps.flops_per_step(last)
    assert saved == pytest.approx(tokens * BLOCK_PRODUCTS)  # half of two blocks
    rare = CostModel.of(GROUPS, replace(budget, steps=1), a_profile(0, keeps=True))
    assert rare.flops_per_step(last) == plain.flops_per_step(last)


def test_a_client_with_few_examples_has_small_batches():
    few = CostModel.of(GROUPS, replace(BUDGET, batch_size=64, tasks=(0,)), a_profile(0))
    assert few.budget.batch_size == 10
    assert CostModel.of(GROUPS, BUDGET, a_profile(0)).budget.batch_size == 2


def test_memory_counts_moments_and_activations_from_the_deepest_group_up():
    shallow, deep = {names(2)[-1]: LowRank(rank=1)}, {names(0)[0]: LowRank(rank=1)}
    values = WIDTH + INNER
    assert COSTS.adapter_bytes(shallow) == 3 * 4 * values
    kept = COSTS.training_bytes(shallow) - COSTS.adapter_bytes(shallow)
    assert kept == 2 * 12.0 * INNER * 4 * 2.5  # inputs, and what a block keeps besides
    assert COSTS.training_bytes(deep) > COSTS.training_bytes(shallow)


def test_seconds_need_a_measured_client():
    plans = {HEAD: Dense()}
    assert COSTS.round_seconds(a_profile(), plans) is None
    known = a_profile(
        flops_per_second=1e6, uplink_bytes_per_second=10.0, downlink_bytes_per_second=20.0
    )
    header = COSTS.message_bytes(plans)
    compute = 4 * COSTS.flops_per_step(plans) / 1e6
    expected = (80 + header) / 20 + compute + (40 + header) / 10
    assert COSTS.round_seconds(known, plans) == pytest.approx(expected)


def test_what_was_not_measured_is_assumed_slow_and_what_was_is_kept():
    client = cautious(a_profile(uplink_bytes_per_second=7.0))
    assert client.uplink_bytes_per_second == 7.0
    assert client.downlink_bytes_per_second == 62_500
    assert COSTS.round_seconds(client, {HEAD: Dense()}) > 0
