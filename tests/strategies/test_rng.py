"""Named streams."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from strategies.rng import rng_for, seed_for

PATHS = st.lists(st.one_of(st.text(max_size=5), st.integers(0, 99)), max_size=4).map(tuple)


@given(first=PATHS, second=PATHS)
def test_streams_are_named_by_their_whole_path(first, second):
    same = tuple(map(str, first)) == tuple(map(str, second))
    assert (seed_for(0, *first) == seed_for(0, *second)) == same


def test_a_stream_does_not_depend_on_others():
    alone = rng_for(7, "a", 1).random(3).tolist()
    rng_for(7, "b").random(100)
    assert rng_for(7, "a", 1).random(3).tolist() == alone


def test_seed_and_neighbouring_parts_matter():
    assert seed_for(1, "ab", "c") != seed_for(1, "a", "bc")
    assert seed_for(1, "a") != seed_for(2, "a")
