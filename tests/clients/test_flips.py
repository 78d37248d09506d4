"""Flips: what the last release got right and this state gets wrong, and the other way round."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clients.flips import Answered, Flips, flips
from clients.state_store import ClientStateStore
from strategies.types import client_ids
from tests.clients.test_trainer import Lab, changed
from tests.conftest import tiny_config

CLIENT = client_ids(3)[0]


def answered(right: dict[int, bool]) -> Answered:
    ids = np.array(sorted(right), dtype=np.int64)
    return Answered(ids=ids, right=np.array([right[i] for i in ids.tolist()], dtype=np.bool_))


ANSWERS = st.dictionaries(st.integers(0, 30), st.booleans())


@given(ANSWERS, ANSWERS)
def test_gained_less_lost_is_the_change_in_what_is_right(before, now):
    both = before.keys() & now.keys()
    found = flips(answered(before), answered(now))
    assert found.compared == len(both)
    assert found.gained - found.lost == sum(now[i] for i in both) - sum(before[i] for i in both)
    assert 0 <= found.lost <= sum(before[i] for i in both)
    assert 0 <= found.gained <= sum(now[i] for i in both)


def test_examples_are_matched_by_id_not_by_place():
    before = answered({1: True, 2: False, 3: True, 9: True})
    now = answered({2: True, 3: False, 5: True, 9: True})
    assert flips(before, now) == Flips(lost=1, gained=1, compared=3)


@pytest.fixture
def bench(tmp_path):
    """A lab whose first task has been trained; step 3 scores it, step 6 scores the second."""
    bench = Lab(tmp_path, tiny_config(federation__min_replies=1))
    for step in (1, 2):
        plan = bench.plan(step)
        bench.state = bench.close(plan, [bench.ask(order) for order in plan.orders]).state
    return bench


def scored(bench, step, *, release, keep=True):
    order = bench.plan(step).orders[0]
    plan = dataclasses.replace(order.assignment.evaluation, release=release, keep=keep)
    return bench.ask(changed(order, evaluation=plan)).scores


def records(bench, before_step=99):
    store = ClientStateStore(bench.trainer.settings.state_folder)
    return store.load("run", CLIENT, before_step=before_step).answered


def test_the_first_release_has_nothing_to_be_compared_with(bench):
    scores = scored(bench, 3, release=None)
    assert {(s.num_lost, s.num_gained, s.num_compared) for s in scores} == {(0, 0, 0)}
    assert sorted(records(bench)) == [3]


def test_flips_are_counted_against_the_release_that_the_server_names(bench):
    first = {s.task_index: s for s in scored(bench, 3, release=None)}
    plan = bench.plan(4)
    bench.state = bench.close(plan, [bench.ask(order) for order in plan.orders]).state
    for score in scored(bench, 6, release=3):
        before = first[score.task_index]
        assert score.num_compared == score.num_examples == before.num_examples
        assert score.num_gained - score.num_lost == score.num_correct - before.num_correct
    assert any(s.num_gained for s in scored(bench, 6, release=3))
    assert sorted(records(bench)) == [3, 6]


def test_a_state_that_was_withheld_is_not_compared_with_and_soon_forgotten(bench):
    """Step 6 was not published: step 9 is still compared with step 3, and 6 is dropped."""
    scored(bench, 3, release=None)
    scored(bench, 6, release=3)
    later = dataclasses.replace(bench.plan(6).orders[0].assignment, step_index=9)
    order = dataclasses.replace(bench.plan(6).orders[0], assignment=later)
    plan = dataclasses.replace(later.evaluation, release=3, keep=True)
    scores = bench.ask(changed(order, evaluation=plan)).scores
    assert all(s.num_compared == s.num_examples for s in scores)
    assert sorted(records(bench)) == [3, 9]


def test_a_client_that_missed_the_release_reports_nothing(bench):
    scores = scored(bench, 6, release=3)
    assert all(s.num_compared == s.num_lost == s.num_gained == 0 for s in scores)
    assert any(s.num_correct for s in scores)


def test_a_client_steps_back_with_the_server(bench):
    scored(bench, 3, release=None)
    first = scored(bench, 6, release=3)
    assert repr(scored(bench, 6, release=3)) == repr(first)
    assert sorted(records(bench, before_step=6)) == [3]


def test_scores_of_a_state_that_cannot_be_published_leave_no_record(bench):
    scored(bench, 3, release=None)
    scored(bench, 4 + 2, release=3, keep=False)
    assert sorted(records(bench)) == [3]


def test_a_client_scored_before_it_ever_trained_gets_its_memory_all_the_same(tmp_path):
    bench = Lab(tmp_path, tiny_config())
    bench.ask(bench.plan(3).orders[0])
    assert bench.ask(bench.plan(4).orders[0]).metrics["memory"] == 10
