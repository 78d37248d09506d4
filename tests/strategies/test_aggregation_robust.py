"""Trimmed mean and coordinate median: worked by hand, and bounded whatever one client sends."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies.aggregation.trimmed_mean import TrimmedMean
from strategies.catalog import AGGREGATORS
from strategies.lora import keys_of
from strategies.protocols import Contribution
from strategies.rng import rng_for
from strategies.types import HEAD, ParamKey
from tests.strategies.aggregation_rounds import (
    GROUP,
    RANK,
    UNWEIGHTED,
    client,
    merge,
    server,
)

robust = pytest.mark.parametrize("name", UNWEIGHTED)
KEY_A, KEY_B = keys_of(GROUP)
WEIGHT = ParamKey(HEAD, "weight")
any_seed = st.integers(0, 1000)


def rows(index, values, weight):
    return Contribution(
        client_id=str(index),
        delta={WEIGHT: np.array(values, "f4")},
        weight={HEAD: np.array(weight, float)},
    )


def aggregated(aggregator, state, clients):
    return aggregator.aggregate({}, state, iter(clients), 2.0, rng_for(0, "x")).tensors


def test_by_hand():
    """Moves 1, 2, 3, 4, 100 of row 0, of which ⌈0.2 · 5⌉ go at either end; 5 and 7 of row 1."""
    state = {WEIGHT: np.array([[10.0], [20.0], [30.0]], "f4")}
    moves = [(4, 5, 0), (1, 7, 0), (100, 9, 9), (2, 9, 9), (3, 9, 9)]
    holds = [(1, 2, 0), (8, 1, 0), (1, 0, 0), (1, 0, 0), (1, 0, 0)]
    clients = [
        rows(i, np.transpose([move]), hold)
        for i, (move, hold) in enumerate(zip(moves, holds, strict=True))
    ]
    found = aggregated(TrimmedMean(trim=0.2), state, clients)[WEIGHT]
    np.testing.assert_allclose(found, [[13.0], [26.0], [30.0]])
    plain = aggregated(TrimmedMean(trim=0.0), state, clients)[WEIGHT]
    np.testing.assert_allclose(plain, [[32.0], [26.0], [30.0]])
    median = aggregated(AGGREGATORS["coordinate-median"](), state, clients)[WEIGHT]
    np.testing.assert_allclose(median, [[13.0], [26.0], [30.0]])
    even = aggregated(AGGREGATORS["coordinate-median"](), state, clients[:4])[WEIGHT]
    np.testing.assert_allclose(even[0], [13.0])  # 10 + (2 + 4) / 2


@robust
@given(ranks=st.lists(st.integers(1, RANK), min_size=1, max_size=7), seed=any_seed)
@settings(max_examples=30)
def test_the_slow_reference_entry_by_entry(name, ranks, seed):
    state = server(seed)
    clients = [client(i, rank, seed=seed) for i, rank in enumerate(ranks)]
    merged = merge(name, state, clients).tensors
    for component in range(RANK):
        having = [c for c, rank in zip(clients, ranks, strict=True) if rank > component]
        for key, pick in (
            (KEY_A, lambda t, i=component: t[i]),
            (KEY_B, lambda t, i=component: t[:, i]),
        ):
            expected = pick(state[key]).astype(float)
            moves = np.sort([pick(c.delta[key]).astype(float) for c in having], axis=0)
            count = len(having)
            if count:
                cut = {
                    "trimmed-mean": min(int(np.ceil(0.3 * count - 1e-9)), (count - 1) // 2),
                    "coordinate-median": (count - 1) // 2,
                }[name]
                expected = expected + moves[cut : count - cut].mean(axis=0)
            np.testing.assert_allclose(pick(merged[key]), expected, atol=1e-6)


@robust
@given(factor=st.floats(-1e30, 1e30), seed=any_seed, weight=st.floats(1, 1e12))
@settings(max_examples=30)
def test_one_client_cannot_move_a_number_past_the_others(name, factor, seed, weight):
    state = server(seed)
    honest = [client(i, seed=seed) for i in range(4)]
    hostile = client(4, weight=weight, seed=seed)
    for value in hostile.delta.values():
        value *= np.float32(factor)
    merged = merge(name, state, [*honest, hostile]).tensors
    for key in (KEY_A, KEY_B):
        moves = np.stack([c.delta[key] for c in honest]).astype(float)
        moved = merged[key].astype(float) - state[key]
        assert (moved <= moves.max(axis=0) + 1e-5).all()
        assert (moved >= moves.min(axis=0) - 1e-5).all()


@robust
def test_identical_updates_are_the_plain_mean(name):
    state, one = server(2), client(0)
    merged, plain = (merge(n, state, [one] * 4).tensors for n in (name, "fedavg"))
    for key in (KEY_A, KEY_B):
        np.testing.assert_allclose(merged[key], plain[key], atol=1e-6)


def test_without_trimming_it_is_the_plain_mean_of_factors():
    state, clients = server(2), [client(i) for i in range(5)]
    found, plain = (
        aggregated(a, state, clients) for a in (TrimmedMean(trim=0.0), AGGREGATORS["fedavg"]())
    )
    for key in (KEY_A, KEY_B):
        np.testing.assert_allclose(found[key], plain[key], atol=1e-6)
