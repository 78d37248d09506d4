"""Replay rounds: when they come, what they train, and what calls a group sensitive."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies.catalog import REPLAY_ROUNDS
from strategies.protocols import ReplayRounds, ReplayView, RoundPlace
from strategies.replay_rounds.adaptive import Adaptive
from strategies.replay_rounds.fpf import ForgettingPrioritized
from strategies.replay_rounds.k_fpf import RepeatedForgettingPrioritized
from strategies.replay_rounds.sensitivity import most_sensitive

DRIFTS = st.dictionaries(st.sampled_from("abcdefgh"), st.floats(1e-6, 10.0), min_size=1)


def places(tasks: int, rounds: int):
    return [
        RoundPlace(number=n, in_all=tasks * rounds, last_of_task=(n + 1) % rounds == 0)
        for n in range(tasks * rounds)
    ]


def view(rises=None, **drifts) -> ReplayView:
    return ReplayView(sensitivity=drifts, rises=rises or {})


def test_the_most_sensitive_by_hand():
    found = {"head": 4.0, "query": 0.5, "value": 1.0, "idle": 0.0}
    assert most_sensitive(found, 0.5) == ("head", "value")
    assert most_sensitive(found, 0.1) == ("head",)
    assert most_sensitive(found, 1.0) == ("head", "value", "query")
    assert most_sensitive({"idle": 0.0}, 1.0) == ()


@given(drifts=DRIFTS, rate=st.floats(0.01, 100), share=st.floats(0.1, 1.0))
def test_what_is_chosen_does_not_depend_on_the_learning_rate(drifts, rate, share):
    chosen = most_sensitive(drifts, share)
    assert most_sensitive({g: d * rate for g, d in drifts.items()}, share) == chosen
    assert len(chosen) == max(1, round(share * len(drifts)))


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
