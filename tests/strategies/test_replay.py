"""Memories: the contract of every policy, and the reservoir's frequencies."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies.catalog import REPLAY_POLICIES
from strategies.protocols import ReplayMemory
from strategies.replay.reservoir import Reservoir
from strategies.rng import rng_for


@pytest.mark.parametrize("name", REPLAY_POLICIES)
@given(capacity=st.integers(0, 12), sizes=st.lists(st.integers(0, 9), max_size=5))
def test_memory_holds_distinct_offered_ids_within_capacity(name, capacity, sizes):
    policy, memory, offered = REPLAY_POLICIES[name](), ReplayMemory.empty(capacity), 0
    for task, size in enumerate(sizes):
        ids = np.arange(offered, offered + size)
        memory = policy.admit(memory, ids, task, rng_for(1, "admit", task))
        offered += size
        assert len(memory.ids) == len(memory.tasks) == min(capacity, offered)
        assert len(set(memory.ids.tolist())) == len(memory.ids)
        assert memory.num_offered == offered
    assert set(memory.ids.tolist()) <= set(range(offered))


@pytest.mark.parametrize("name", REPLAY_POLICIES)
@given(count=st.integers(0, 30))
def test_draw_gives_distinct_members_and_no_more_than_there_are(name, count):
    policy = REPLAY_POLICIES[name]()
    memory = policy.admit(ReplayMemory.empty(10), np.arange(100, 125), 0, rng_for(2))
    drawn = policy.draw(memory, count, rng_for(3))
    assert len(drawn) == min(count, 10)
    assert len(set(drawn.tolist())) == len(drawn)
    assert set(drawn.tolist()) <= set(memory.ids.tolist())


@pytest.mark.parametrize("name", REPLAY_POLICIES)
def test_same_seed_same_memory_and_inputs_untouched(name):
    policy, start = REPLAY_POLICIES[name](), ReplayMemory.empty(5)
    first = policy.admit(start, np.arange(50), 0, rng_for(4))
    again = policy.admit(start, np.arange(50), 0, rng_for(4))
    np.testing.assert_array_equal(first.ids, again.ids)
    assert len(start.ids) == 0


def test_reservoir_keeps_every_example_equally_often():
    """Capacity/n each, early or late; five standard errors of 4000 trials."""
    trials, capacity, stream = 4000, 5, 20
    counts = np.zeros(stream)
    for trial in range(trials):
        memory = Reservoir().admit(
            ReplayMemory.empty(capacity), np.arange(stream), 0, rng_for(trial, "reservoir")
        )
        counts[memory.ids] += 1
    share = capacity / stream
    error = np.sqrt(share * (1 - share) / trials)
    np.testing.assert_allclose(counts / trials, share, atol=5 * error)


def test_offering_in_two_parts_is_offering_at_once_in_distribution():
    rng = rng_for(5)
    memory = Reservoir().admit(ReplayMemory.empty(4), np.arange(10), 0, rng)
    split = Reservoir().admit(memory, np.arange(10, 20), 1, rng)
    whole_rng = rng_for(5)
    whole = Reservoir().admit(ReplayMemory.empty(4), np.arange(20), 0, whole_rng)
    np.testing.assert_array_equal(split.ids, whole.ids)
