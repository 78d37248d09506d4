"""How work is cut to fit a limit: a hand-worked case, the order of the levers, and laws."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies.cost import CostModel
from strategies.fitting import (
    MIB,
    MOST_KEPT_BYTES,
    STEP_BYTES,
    Fit,
    TooLarge,
    fit,
    kept_bytes,
    least_bytes,
    peak_bytes,
)
from strategies.types import HEAD, Dense, LowRank, RoundBudget
from tests.strategies.model_of_blocks import WIDTH, a_profile, groups_of

GROUPS = groups_of(num_blocks=4)
PLANS = {g.name: Dense() if g.name == HEAD else LowRank(rank=1) for g in GROUPS if g.linear} | {
    HEAD: Dense()
}
RESIDENT, EXAMPLE = 400 * MIB, 10 * MIB


def a_client(limit: int | None, **changes):
    return a_profile(
        0, memory_limit_bytes=limit, resident_bytes=RESIDENT, activation_bytes=EXAMPLE,
        longest_example=20, **changes,
    )  # fmt: skip


def costs_of(client, **budget) -> CostModel:
    return CostModel.of(GROUPS, RoundBudget(batch_size=16, **budget), client)


def test_the_peak_by_hand():
    client = a_client(None)
    costs = costs_of(client)
    values = costs.num_values(PLANS)
    fixed = RESIDENT + STEP_BYTES + 4 * values * (3 + 4)
    assert peak_bytes(costs, PLANS, client, 16) == pytest.approx(fixed + 1.7 * 16 * EXAMPLE)
    borders = 20 * 4 * WIDTH * 4  # tokens, blocks, the width before each, four bytes
    again = fixed + 16 * borders + 3.5 * 16 * EXAMPLE / 4
    assert peak_bytes(costs, PLANS, client, 16, again=True) == pytest.approx(again)


def test_what_lies_below_the_deepest_trained_group_is_not_kept():
    client = a_client(None)
    top = {HEAD: Dense(), **{g.name: LowRank(rank=1) for g in GROUPS if g.block == 3}}
    share = costs_of(client).kept_bytes(top, client) / EXAMPLE
    assert share == pytest.approx(1 / 4, abs=0.02)


def test_a_client_that_did_not_measure_is_counted_by_its_longest_example():
    short = replace(a_client(None), activation_bytes=None, tokens_per_example=5.0)
    costs = costs_of(short)
    long = replace(short, longest_example=40)
    assert costs.kept_bytes(PLANS, long) == 2 * costs.kept_bytes(PLANS, short)


def test_without_a_limit_nothing_is_cut():
    found = fit(costs_of(a_client(None)), PLANS, a_client(None))
    assert isinstance(found, Fit)
    assert (found.micro_batch_size, found.checkpointing) == (None, False)


def test_first_batches_shrink_then_blocks_are_computed_again_then_the_missing_bytes_are_named():
    fixed = RESIDENT + STEP_BYTES

    def given_limit(extra: float, **changes) -> Fit | TooLarge:
        client = a_client(int(fixed + extra), **changes)
        return fit(costs_of(client), PLANS, client)

    small = given_limit(5.2 * 1.7 * EXAMPLE)
    assert isinstance(small, Fit)
    assert (small.micro_batch_size, small.checkpointing) == (5, False)
    assert small.text.startswith("micro-batches of 5; predicted 0.57 GiB")
    again = given_limit(1.2 * EXAMPLE)
    assert isinstance(again, Fit)
    assert (again.micro_batch_size, again.checkpointing) == (1, True)
    none = given_limit(0.5 * EXAMPLE)
    assert isinstance(none, TooLarge)
    assert isinstance(given_limit(1.2 * EXAMPLE, recomputes=False), TooLarge)
    lifted = a_client(int(fixed + 0.5 * EXAMPLE + none.missing_bytes) + 1)
    assert isinstance(fit(costs_of(lifted), PLANS, lifted), Fit)


def test_what_frozen_blocks_make_is_kept_where_a_sixteenth_of_the_limit_is_left():
    free = a_client(None)
    peak = int(peak_bytes(costs_of(free), PLANS, free, 16)) + 1
    for room, keeps in ((0, False), (64 * MIB, True)):
        client = a_client(peak + room)
        found = fit(costs_of(client), PLANS, client)
        assert isinstance(found, Fit)
        assert found.micro_batch_size is None
        assert found.keeps is keeps
    assert fit(costs_of(a_client(None)), PLANS, a_client(None)).keeps
    assert kept_bytes(None) == kept_bytes(2**40) == MOST_KEPT_BYTES
    assert kept_bytes(2**30) == 2**26


def test_a_batch_that_cannot_be_split_is_kept_whole():
    client = a_client(RESIDENT + STEP_BYTES + 15 * EXAMPLE)
    found = fit(costs_of(client, divisible=False), PLANS, client)
    assert isinstance(found, Fit)
    assert (found.micro_batch_size, found.checkpointing) == (None, True)


@given(st.integers(0, 400), st.integers(0, 400), st.booleans(), st.booleans())
def test_what_fits_stays_within_and_more_memory_never_gives_less(one, other, whole, recomputes):
    low, high = sorted((one, other))
    found = []
    for extra in (low, high):
        client = a_client(RESIDENT + STEP_BYTES + extra * MIB, recomputes=recomputes)
        costs = costs_of(client, divisible=not whole)
        result = fit(costs, PLANS, client)
        if isinstance(result, Fit):
            assert result.peak_bytes <= client.memory_limit_bytes
            found.append((not result.checkpointing, result.micro_batch_size or 16))
        else:
            assert least_bytes(costs, PLANS, client) > client.memory_limit_bytes
            found.append((False, 0))
    assert found[0] <= found[1]
