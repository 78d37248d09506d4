"""Replay rounds: when they come, what they train, and what calls a group sensitive."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies.catalog import REPLAY_ROUNDS
from strategies.protocols import ReplayRounds, ReplayView, RoundPlace
from strategies.replay_rounds.adaptive import Adaptive
from strategies.replay_rounds.fpf import ForgettingPrioritized
from strategies.replay_rounds.k_fpf import RepeatedForgettingPrioritized
from strategies.replay_rounds.sensitivity import most_sensitive, sensitivity

DRIFTS = st.dictionaries(st.sampled_from("abcdefgh"), st.floats(1e-6, 10.0), min_size=1)


def places(tasks: int, rounds: int):
    return [
        RoundPlace(number=n, in_all=tasks * rounds, last_of_task=(n + 1) % rounds == 0)
        for n in range(tasks * rounds)
    ]


def view(rises=None, **drifts) -> ReplayView:
    return ReplayView(sensitivity=drifts, rises=rises or {})


def test_sensitivity_by_hand():
    found = sensitivity({"head": 4.0, "query": 1.0, "idle": 0.0}, {"head": 1.0, "query": 2.0})
    assert found == {"head": 4.0, "query": 0.5, "idle": 0.0}
    assert most_sensitive(found, 0.5) == ("head", "query")
    assert most_sensitive(found, 0.1) == ("head",)
    assert most_sensitive({"idle": 0.0}, 1.0) == ()


def test_with_one_round_per_task_the_drift_itself_decides():
    assert sensitivity({"a": 2.0, "b": 3.0}, {}) == {"a": 2.0, "b": 3.0}


def test_a_group_that_moves_only_when_the_task_changes_is_the_most_sensitive():
    assert sensitivity({"a": 2.0, "b": 3.0}, {"b": 1.0, "a": 0.0})["a"] == math.inf


@given(first=DRIFTS, later=DRIFTS, rate=st.floats(0.01, 100), share=st.floats(0.1, 1.0))
def test_what_is_chosen_does_not_depend_on_the_learning_rate(first, later, rate, share):
    later = {group: later.get(group, 1.0) for group in first}
    scaled = [{g: d * rate for g, d in drifts.items()} for drifts in (first, later)]
    plain, faster = sensitivity(first, later), sensitivity(*scaled)
    for group, value in plain.items():
        assert faster[group] == pytest.approx(value)
    assert len(most_sensitive(plain, share)) == max(1, round(share * len(first)))


@pytest.mark.parametrize(("tasks", "rounds"), [(1, 1), (3, 2), (10, 5)])
@pytest.mark.parametrize("k", [0, 1, 3, 7, 50])
def test_k_fpf_fires_k_times_at_equal_distances_and_at_the_end(tasks, rounds, k):
    fired = [RepeatedForgettingPrioritized(k=k).rounds_after(p) for p in places(tasks, rounds)]
    assert sum(fired) == k
    assert bool(fired[-1]) == bool(k)
    assert max(fired) - min(fired) <= 1


def test_fpf_fires_after_each_task():
    fired = [ForgettingPrioritized(rounds=2).rounds_after(p) for p in places(3, 2)]
    assert fired == [0, 2, 0, 2, 0, 2]


def test_adaptive_waits_for_a_task_to_fade():
    strategy = Adaptive(threshold=0.2, share=0.5)
    assert strategy.groups(view({0: 0.1, 1: 0.2}, head=2.0, query=1.0)) == ()
    assert strategy.groups(view({0: 0.1, 1: 0.3}, head=2.0, query=1.0)) == ("head",)
    assert strategy.groups(view({}, head=2.0)) == ()


@pytest.mark.parametrize("name", [n for n, s in REPLAY_ROUNDS.items() if n != "none"])
def test_every_strategy_keeps_to_the_groups_it_is_shown(name):
    strategy = REPLAY_ROUNDS[name]()
    assert isinstance(strategy, ReplayRounds)
    chosen = strategy.groups(view({0: 9.0}, head=2.0, query=1.0, norm=0.0))
    assert set(chosen) <= {"head", "query"}
    assert chosen
    assert strategy.steps >= 1
