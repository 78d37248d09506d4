"""Memories: the contract of every policy, and the reservoir's frequencies."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies.catalog import REPLAY_POLICIES
from strategies.protocols import Offer, ReplayMemory
from strategies.replay.balanced import Balanced
from strategies.replay.forgetting import Forgetting
from strategies.replay.mir import MaximallyInterfered
from strategies.replay.reservoir import Reservoir
from strategies.replay.ring import Ring
from strategies.rng import rng_for


def offer(ids, task: int = 0, labels=None) -> Offer:
    ids = np.asarray(ids, dtype=np.int64)
    return Offer(ids=ids, labels=ids % 3 if labels is None else np.asarray(labels), task=task)


@pytest.mark.parametrize("name", REPLAY_POLICIES)
@given(capacity=st.integers(0, 12), sizes=st.lists(st.integers(0, 9), max_size=5))
def test_memory_holds_distinct_offered_ids_within_capacity(name, capacity, sizes):
    policy, memory, offered = REPLAY_POLICIES[name](), ReplayMemory.empty(capacity), 0
    for task, size in enumerate(sizes):
        ids = np.arange(offered, offered + size)
        memory = policy.admit(memory, offer(ids, task), rng_for(1, "admit", task))
        offered += size
        assert len(memory.ids) == len(memory.tasks) == len(memory.labels)
        assert len(memory.ids) <= min(capacity, offered)
        if name != "ring":  # whose rings may be larger than what a class has offered
            assert len(memory.ids) == min(capacity, offered)
        np.testing.assert_array_equal(memory.labels, memory.ids % 3)
        assert memory.offered[:, 2].sum() == offered
        assert len(set(memory.ids.tolist())) == len(memory.ids)
        assert memory.num_offered == offered
    assert set(memory.ids.tolist()) <= set(range(offered))


@pytest.mark.parametrize("name", REPLAY_POLICIES)
@given(count=st.integers(0, 30))
def test_draw_gives_distinct_members_and_no_more_than_there_are(name, count):
    policy = REPLAY_POLICIES[name]()
    memory = policy.admit(ReplayMemory.empty(10), offer(np.arange(100, 125)), rng_for(2))
    drawn = policy.draw(memory, count, rng_for(3))
    assert len(drawn) == min(count, len(memory.ids))
    assert len(set(drawn.tolist())) == len(drawn)
    assert set(drawn.tolist()) <= set(memory.ids.tolist())


@pytest.mark.parametrize("name", REPLAY_POLICIES)
def test_same_seed_same_memory_and_inputs_untouched(name):
    policy, start = REPLAY_POLICIES[name](), ReplayMemory.empty(5)
    first = policy.admit(start, offer(np.arange(50)), rng_for(4))
    again = policy.admit(start, offer(np.arange(50)), rng_for(4))
    np.testing.assert_array_equal(first.ids, again.ids)
    assert len(start.ids) == 0


def test_reservoir_keeps_every_example_equally_often():
    """Capacity/n each, early or late; five standard errors of 4000 trials."""
    trials, capacity, stream = 4000, 5, 20
    counts = np.zeros(stream)
    for trial in range(trials):
        memory = Reservoir().admit(
            ReplayMemory.empty(capacity), offer(np.arange(stream)), rng_for(trial, "reservoir")
        )
        counts[memory.ids] += 1
    share = capacity / stream
    error = np.sqrt(share * (1 - share) / trials)
    np.testing.assert_allclose(counts / trials, share, atol=5 * error)


def test_offering_in_two_parts_is_offering_at_once_in_distribution():
    rng = rng_for(5)
    memory = Reservoir().admit(ReplayMemory.empty(4), offer(np.arange(10)), rng)
    split = Reservoir().admit(memory, offer(np.arange(10, 20), 1), rng)
    whole_rng = rng_for(5)
    whole = Reservoir().admit(ReplayMemory.empty(4), offer(np.arange(20)), whole_rng)
    np.testing.assert_array_equal(split.ids, whole.ids)


def held(memory: ReplayMemory) -> dict[tuple[int, int], int]:
    pairs = zip(memory.tasks.tolist(), memory.labels.tolist(), strict=True)
    found = dict[tuple[int, int], int]()
    for pair in pairs:
        found[pair] = found.get(pair, 0) + 1
    return found


def test_a_balanced_memory_keeps_rare_classes_whole_and_shares_the_rest():
    labels = np.array([0] * 60 + [1] * 3 + [2] * 60)
    rng = rng_for(7)
    order = rng.permutation(len(labels))
    memory = Balanced().admit(ReplayMemory.empty(21), offer(order, labels=labels[order]), rng)
    assert held(memory) == {(0, 0): 9, (0, 1): 3, (0, 2): 9}
    later = Balanced().admit(memory, offer(np.arange(200, 240), 1, np.full(40, 0)), rng)
    assert max(held(later).values()) - min(n for g, n in held(later).items() if g != (0, 1)) <= 1
    assert held(later)[0, 1] == 3


def test_within_a_class_a_balanced_memory_is_a_reservoir():
    trials, counts = 3000, np.zeros(20)
    labels = np.array([0, 1] * 20)
    for trial in range(trials):
        memory = Balanced().admit(
            ReplayMemory.empty(8), offer(np.arange(40), labels=labels), rng_for(trial, "balanced")
        )
        counts[memory.ids[memory.labels == 0] // 2] += 1
    share = 4 / 20
    error = np.sqrt(share * (1 - share) / trials)
    np.testing.assert_allclose(counts / trials, share, atol=6 * error)


def test_a_ring_holds_the_newest_of_every_class_and_shrinks_as_classes_come():
    first = Ring().admit(ReplayMemory.empty(6), offer(range(10), labels=[0] * 10), rng_for(0))
    assert sorted(first.ids) == [4, 5, 6, 7, 8, 9]
    more = Ring().admit(first, offer(range(10, 20), 1, [1] * 10), rng_for(0))
    assert sorted(more.ids) == [7, 8, 9, 17, 18, 19]
    many = Ring().admit(more, offer(range(20, 30), 2, range(2, 12)), rng_for(0))
    assert len(many.ids) == 6
    assert sorted(many.ids)[-6:] == [24, 25, 26, 27, 28, 29]


def forgotten(*losses) -> ReplayMemory:
    """A memory of examples 0, 1, … with (lowest, latest) losses."""
    count = len(losses)
    memory = Reservoir().admit(ReplayMemory.empty(count), offer(np.arange(count)), rng_for(0))
    return dataclasses.replace(memory, losses=np.array(losses, dtype=float).reshape(-1, 2))


def test_a_memory_keeps_each_examples_lowest_loss():
    memory = forgotten((np.nan, np.nan), (0.5, 0.7), (0.2, 0.2))
    again = memory.measured(np.array([0.4, 0.3, 1.0]))
    np.testing.assert_allclose(again.losses, [(0.4, 0.4), (0.3, 0.3), (0.2, 1.0)])
    np.testing.assert_allclose(again.rises(), [0.0, 0.0, 0.8])


def test_losses_follow_their_examples_when_others_come_in():
    memory = forgotten((0.1, 0.2), (0.3, 0.4))
    wider = dataclasses.replace(memory, capacity=4)
    after = Reservoir().admit(wider, offer([7, 8]), rng_for(1)).with_losses_of(memory)
    np.testing.assert_array_equal(after.losses[:2], memory.losses)
    assert np.isnan(after.losses[2:]).all()


def test_forgetting_by_hand():
    """Rises 0, 1 and 3 at floor 0.1: a tenth evenly, the rest as 0 : 1 : 3."""
    memory = forgotten((0.5, 0.5), (1.0, 2.0), (0.5, 3.5))
    policy = Forgetting(floor=0.1, beta=1.0)
    wanted = 0.9 * np.array([0, 1 / 4, 3 / 4]) + 0.1 / 3
    np.testing.assert_allclose(policy.probabilities(memory), wanted)
    np.testing.assert_allclose(policy.weights(memory, memory.ids), 1 / (3 * wanted))


def test_what_is_forgotten_more_is_drawn_more_and_nothing_starves():
    memory, policy = forgotten((0, 0), (0, 1), (0, 2), (0, 8)), Forgetting(floor=0.2)
    drawn = [policy.draw(memory, 1, rng_for(5, index))[0] for index in range(4000)]
    shares = np.bincount(drawn, minlength=4) / 4000
    np.testing.assert_allclose(shares, policy.probabilities(memory), atol=0.03)
    assert (np.diff(shares) > 0).all()
    assert shares[0] == pytest.approx(0.05, abs=0.015)


LOSSES = st.lists(st.tuples(st.floats(0, 5), st.floats(0, 50)), min_size=1, max_size=12)


@given(losses=LOSSES, floor=st.floats(0.01, 1), beta=st.floats(0, 1), power=st.floats(0, 3))
def test_whatever_was_forgotten_nothing_starves_and_no_weight_explodes(losses, floor, beta, power):
    memory = forgotten(*((min(pair), max(pair)) for pair in losses))
    policy = Forgetting(floor=floor, beta=beta, sharpness=power)
    p = policy.probabilities(memory)
    assert p.sum() == pytest.approx(1)
    assert (p >= floor / len(losses) * (1 - 1e-9)).all()
    weights = policy.weights(memory, memory.ids)
    assert (weights <= floor**-beta * (1 + 1e-9)).all()
    order = np.argsort(memory.rises(), kind="stable")
    assert (np.diff(p[order]) >= -1e-12).all()  # who lost more is never drawn less


def test_the_importance_correction_takes_the_bias_out():
    """With β = 1 the expected weighted loss of a draw is the mean loss of the memory."""
    memory, policy = forgotten((0, 0), (0, 1), (0, 2), (0, 8)), Forgetting(beta=1.0)
    p, w = policy.probabilities(memory), policy.weights(memory, memory.ids)
    assert np.sum(p * w * memory.losses[:, 1]) == pytest.approx(memory.losses[:, 1].mean())
    assert policy.weights(memory, memory.ids).max() == pytest.approx(1 / policy.floor)


def test_an_example_not_measured_yet_counts_as_the_most_forgotten():
    memory = forgotten((0, 0.5), (np.nan, np.nan), (0, 2.0))
    p = Forgetting().probabilities(memory)
    assert p[1] == p[2] > p[0]
    np.testing.assert_allclose(Forgetting().probabilities(forgotten(*[(np.nan, np.nan)] * 4)), 0.25)


def test_mir_takes_the_most_interfered_and_breaks_ties_by_chance():
    policy, ids = MaximallyInterfered(), np.array([4, 9, 2, 7])
    chosen = policy.choose(ids, np.array([0.1, -1.0, 3.0, 0.2]), 2)
    assert chosen.tolist() == [2, 7]
    memory = policy.admit(ReplayMemory.empty(8), offer(np.arange(8)), rng_for(0))
    first = [
        policy.choose(policy.draw(memory, 8, rng_for(6, index)), np.zeros(8), 1)[0]
        for index in range(800)
    ]
    np.testing.assert_allclose(np.bincount(first, minlength=8) / 800, 1 / 8, atol=0.04)
