"""Server memory does not grow with the cohort, and no contribution outlives its turn."""

from __future__ import annotations

import gc
import tracemalloc
import weakref
from collections.abc import Iterator

import pytest

from strategies.catalog import AGGREGATORS
from strategies.protocols import Contribution
from strategies.rng import rng_for
from tests.strategies.aggregation_rounds import allowed, client, parts_of, server

RANK, LINEAR = 4, (96, 160)
# An order statistic of every coordinate needs all of its values at once; these say so.
HOLDING = ("trimmed-mean", "coordinate-median")


def arriving(name: str, count: int) -> Iterator[Contribution]:
    """Clients made one by one, as replies arrive."""
    aggregator = AGGREGATORS[name]()
    for index in range(count):
        rank = allowed(aggregator, [RANK, 1 + index % RANK])[1]
        yield client(index, rank, parts=parts_of(aggregator), linear=LINEAR)


def peak_bytes(name: str, count: int) -> int:
    state = server(rank=RANK, linear=LINEAR)
    gc.collect()
    tracemalloc.start()
    try:
        AGGREGATORS[name]().aggregate({}, state, arriving(name, count), 1.0, rng_for(0))
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", [name for name in AGGREGATORS if name not in HOLDING])
def test_peak_memory_is_flat_in_the_number_of_clients(name):
    peak_bytes(name, 1)  # what is allocated once: caches, imports
    few, many = peak_bytes(name, 300), peak_bytes(name, 900)
    # A stack may be anywhere between full and just cut when the last client has come.
    assert many < 1.5 * few + 200_000


@pytest.mark.parametrize("name", AGGREGATORS)
def test_no_delta_is_held_on_to(name):
    """Beyond its turn; the last one, and those of one turn before, may still be in hand."""
    born: list[weakref.ref[object]] = []

    def watched() -> Iterator[Contribution]:
        for contribution in arriving(name, 20):
            born.extend(weakref.ref(value) for value in contribution.delta.values())
            yield contribution
            del contribution
            assert sum(ref() is not None for ref in born) <= 4

    AGGREGATORS[name]().aggregate({}, server(rank=RANK, linear=LINEAR), watched(), 1.0, rng_for(0))
    assert len(born) >= 20
