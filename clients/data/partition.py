"""How examples are dealt to simulated clients: every example to exactly one.

An example is known by a key of its content, so the deal does not depend on the order of the file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from heapq import heapreplace

import numpy as np
from numpy.typing import NDArray

from strategies.errors import DataError
from strategies.recipe import PartitionRecipe
from strategies.rng import Rng, rng_for


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pool:
    """A split to be dealt.

    ``keys`` (n,) uint64 name the examples; ``strata`` (n,) are what Dirichlet proportions are drawn
    for, labels or domains; ``values`` (n,) are the partition column, if there is one.
    """

    keys: NDArray[np.uint64]
    strata: Sequence[str]
    values: Sequence[str] | None = None


def deal(
    recipe: PartitionRecipe, seed: int, num_clients: int, train: Pool, test: Pool
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The client index of every training and every test example, (n,) each.

    Test examples follow the same proportions as training examples.  Clients may end up with none.
    Raises: DataError for a recipe that lacks something.
    """
    if recipe.kind == "column":
        return _by_column(num_clients, train, test)
    strata = [train.strata, test.strata]
    if recipe.kind == "iid":
        strata = [["all"] * len(pool.keys) for pool in (train, test)]
    shares = {
        name: _shares(recipe, num_clients, rng_for(seed, "partition", name))
        for name in sorted({*strata[0], *strata[1]})
    }
    return (
        _apportion(train.keys, strata[0], shares, seed_path=(seed, "train")),
        _apportion(test.keys, strata[1], shares, seed_path=(seed, "test")),
    )


def _apportion(
    keys: NDArray[np.uint64],
    strata: Sequence[str],
    shares: Mapping[str, NDArray[np.float64]],
    *,
    seed_path: tuple[int, str],
) -> NDArray[np.int64]:
    """Deal every stratum by its shares, (n,)."""
    members: dict[str, list[int]] = {}
    for row, name in enumerate(strata):
        members.setdefault(name, []).append(row)
    owner = np.full(len(keys), -1, dtype=np.int64)
    seed, split = seed_path
    for name, found in members.items():
        rng = rng_for(seed, "partition", name, split)
        rows = np.array(found, dtype=np.int64)
        counts = largest_remainder(shares[name], len(rows), rng)
        owner[rows[shuffled(keys[rows], rng)]] = np.repeat(np.arange(len(counts)), counts)
    return owner


def shuffled(keys: NDArray[np.uint64], rng: Rng) -> NDArray[np.int64]:
    """Row numbers in an order that depends on the rows' keys, not on where they stand."""
    by_key: NDArray[np.int64] = np.argsort(keys, kind="stable").astype(np.int64)
    order: NDArray[np.int64] = by_key[rng.permutation(len(by_key))]
    return order


def largest_remainder(shares: NDArray[np.float64], total: int, rng: Rng) -> NDArray[np.int64]:
    """Whole counts (k,) that add up to ``total``, each less than one away from its share.

    What rounding down leaves goes to the largest remainders, ties by lot.
    Source: Hamilton's method of apportionment.
    """
    exact = shares / shares.sum() * total
    counts: NDArray[np.int64] = np.floor(exact).astype(np.int64)
    lots = rng.permutation(len(shares))
    # Rounded, so that noise in the last bit does not decide what the lot should.
    order = lots[np.argsort(-(exact - counts)[lots].round(9), kind="stable")]
    counts[order[: total - counts.sum()]] += 1
    return counts


def _shares(recipe: PartitionRecipe, num_clients: int, rng: Rng) -> NDArray[np.float64]:
    if recipe.kind == "iid":
        return np.full(num_clients, 1 / num_clients)
    shares = rng.dirichlet(np.full(num_clients, recipe.alpha))
    if not np.isclose(shares.sum(), 1):  # overflow in the draw
        raise DataError(
            f"partition.alpha: {recipe.alpha:g} is beyond what can be drawn from; "
            'use kind = "iid" for even shares'
        )
    return shares


def _by_column(
    num_clients: int, train: Pool, test: Pool
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Largest value first, each to the client that has the fewest examples so far."""
    if train.values is None or test.values is None:
        raise DataError(
            'partition.column: found nothing, kind = "column" expected a column to deal by'
        )
    sizes = Counter([*train.values, *test.values])
    held, owner = [(0, client) for client in range(num_clients)], dict[str, int]()
    for value in sorted(sizes, key=lambda value: (-sizes[value], value)):
        count, owner[value] = held[0]
        heapreplace(held, (count + sizes[value], owner[value]))
    return (
        np.array([owner[value] for value in train.values], dtype=np.int64),
        np.array([owner[value] for value in test.values], dtype=np.int64),
    )
