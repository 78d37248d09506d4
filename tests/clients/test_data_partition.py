"""Dealing examples to clients."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clients.data.partition import Pool, deal, largest_remainder
from strategies.errors import DataError
from strategies.recipe import PartitionRecipe
from strategies.rng import rng_for

RECIPES = st.one_of(
    st.just(PartitionRecipe(kind="iid")),
    st.builds(
        PartitionRecipe, kind=st.just("dirichlet"), alpha=st.floats(min_value=1e-3, max_value=1e3)
    ),
    st.just(PartitionRecipe(kind="column", column="farm")),
)


def _pool(size: int, seed: int) -> Pool:
    rng = np.random.default_rng(seed)
    return Pool(
        keys=rng.permutation(10 * size + 1)[:size].astype(np.uint64),
        strata=[f"label {i}" for i in rng.integers(0, 4, size)],
        values=[f"farm {i}" for i in rng.integers(0, 6, size)],
    )


def _take(pool: Pool, order: np.ndarray) -> Pool:
    assert pool.values is not None
    return Pool(
        keys=pool.keys[order],
        strata=[pool.strata[i] for i in order],
        values=[pool.values[i] for i in order],
    )


@given(
    recipe=RECIPES,
    num_clients=st.integers(1, 8),
    sizes=st.tuples(st.integers(1, 60), st.integers(0, 30)),
    seed=st.integers(0, 50),
)
@settings(max_examples=60, deadline=None)
def test_everything_is_dealt_once_whatever_the_order(
    recipe: PartitionRecipe, num_clients: int, sizes: tuple[int, int], seed: int
) -> None:
    train, test = _pool(sizes[0], seed), _pool(sizes[1], seed + 1)
    owners = deal(recipe, seed, num_clients, train, test)
    for pool, owner in zip((train, test), owners, strict=True):
        # One owner in range per row is what makes shards disjoint and complete.
        assert owner.shape == pool.keys.shape
        assert not len(owner) or (owner.min() >= 0 and owner.max() < num_clients)
    again = deal(recipe, seed, num_clients, train, test)
    assert all(np.array_equal(a, b) for a, b in zip(owners, again, strict=True))
    orders = [np.random.default_rng(seed).permutation(size) for size in sizes]
    moved = deal(recipe, seed, num_clients, _take(train, orders[0]), _take(test, orders[1]))
    for owner, after, order in zip(owners, moved, orders, strict=True):
        assert np.array_equal(owner[order], after)


@given(
    weights=st.lists(st.floats(0, 1), min_size=1, max_size=8).filter(lambda w: sum(w) > 1e-6),
    total=st.integers(0, 200),
)
def test_counts_add_up_and_stay_within_one_of_their_share(weights: list[float], total: int) -> None:
    shares = np.array(weights) / sum(weights)
    counts = largest_remainder(shares, total, rng_for(0))
    assert counts.sum() == total
    assert np.abs(counts - shares * total).max() < 1 + 1e-6


def test_iid_counts_differ_by_at_most_one() -> None:
    train, test = _pool(103, 1), _pool(11, 2)
    owners = deal(PartitionRecipe(kind="iid"), 3, 4, train, test)
    assert sorted(np.bincount(owners[0], minlength=4)) == [25, 26, 26, 26]
    assert np.ptp(np.bincount(owners[1], minlength=4)) <= 1


def _by_label(owner: np.ndarray, pool: Pool, num_clients: int) -> np.ndarray:
    """Share of each label every client has, (labels, clients)."""
    strata = np.array(pool.strata)
    rows = [np.bincount(owner[strata == name], minlength=num_clients) for name in sorted({*strata})]
    return np.array([row / row.sum() for row in rows])


def test_a_large_alpha_comes_close_to_even_shares_and_a_small_one_does_not() -> None:
    train, test = _pool(4000, 1), _pool(1000, 2)
    even = deal(PartitionRecipe(kind="dirichlet", alpha=1e5), 3, 5, train, test)
    assert np.abs(_by_label(even[0], train, 5) - 0.2).max() < 0.01
    skewed = deal(PartitionRecipe(kind="dirichlet", alpha=0.1), 3, 5, train, test)
    assert _by_label(skewed[0], train, 5).max() > 0.6


def test_every_label_has_shares_of_its_own() -> None:
    train = _pool(4000, 1)
    owners = deal(PartitionRecipe(kind="dirichlet", alpha=0.5), 3, 5, train, train)
    shares = _by_label(owners[0], train, 5)
    assert min(np.abs(a - b).max() for i, a in enumerate(shares) for b in shares[:i]) > 0.05


def test_a_clients_test_set_looks_like_its_training_set() -> None:
    train, test = _pool(4000, 1), _pool(1000, 2)
    owners = deal(PartitionRecipe(kind="dirichlet", alpha=0.3), 3, 5, train, test)
    difference = _by_label(owners[0], train, 5) - _by_label(owners[1], test, 5)
    assert np.abs(difference).max() < 0.01


def test_dirichlet_shares_have_the_right_mean_and_spread() -> None:
    alpha, num_clients = 0.5, 4
    shares = [
        _by_label(
            deal(
                PartitionRecipe(kind="dirichlet", alpha=alpha),
                seed,
                num_clients,
                Pool(keys=np.arange(1000, dtype=np.uint64), strata=["a"] * 1000),
                Pool(keys=np.zeros(0, dtype=np.uint64), strata=[]),
            )[0],
            Pool(keys=np.arange(1000, dtype=np.uint64), strata=["a"] * 1000),
            num_clients,
        )[0]
        for seed in range(400)
    ]
    mean = 1 / num_clients
    assert np.abs(np.mean(shares, axis=0) - mean).max() < 0.05
    expected_variance = mean * (1 - mean) / (num_clients * alpha + 1)
    assert np.var(shares) == pytest.approx(expected_variance, rel=0.15)


def test_values_of_a_column_are_dealt_whole_and_balanced() -> None:
    values = ["big"] * 6 + ["mid"] * 4 + ["small"] * 2 + ["tiny"]
    train = Pool(keys=np.arange(13, dtype=np.uint64), strata=["a"] * 13, values=values)
    test = Pool(keys=np.arange(2, dtype=np.uint64), strata=["a"] * 2, values=["mid", "big"])
    owners = deal(PartitionRecipe(kind="column", column="farm"), 0, 2, train, test)
    assert owners[0].tolist() == [0] * 6 + [1] * 4 + [1] * 2 + [0]
    assert owners[1].tolist() == [1, 0]


def test_more_clients_than_values_leaves_some_without() -> None:
    train = Pool(keys=np.arange(2, dtype=np.uint64), strata=["a"] * 2, values=["x", "y"])
    owners = deal(PartitionRecipe(kind="column", column="farm"), 0, 5, train, train)
    assert owners[0].tolist() == [0, 1]


def test_a_column_that_is_not_named_is_asked_for() -> None:
    pool = Pool(keys=np.arange(2, dtype=np.uint64), strata=["a"] * 2)
    with pytest.raises(DataError, match=r"partition\.column: found nothing"):
        deal(PartitionRecipe(kind="column"), 0, 2, pool, pool)


def test_an_alpha_beyond_drawing_is_refused() -> None:
    pool = _pool(5, 0)
    with pytest.raises(DataError, match=r"partition\.alpha: 1e\+308"):
        deal(PartitionRecipe(kind="dirichlet", alpha=1e308), 0, 5, pool, pool)
