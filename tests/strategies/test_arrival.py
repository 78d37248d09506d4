"""Who meets which task when: every client every task once, and the same seed the same orders."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies.arrival import arrivals
from strategies.recipe import StreamRecipe
from strategies.types import client_ids


def a_recipe(arrival: str, lag: int | None = None) -> StreamRecipe:
    return StreamRecipe(kind="class-incremental", classes_per_task=2, arrival=arrival, lag=lag)


RECIPES = st.one_of(
    st.sampled_from(["together", "shuffled"]).map(a_recipe),
    st.integers(2, 5).map(lambda lag: a_recipe("staggered", lag)),
)


@given(RECIPES, st.integers(1, 7), st.integers(1, 7), st.integers(0, 99))
def test_every_client_meets_every_task_exactly_once(recipe, num_clients, num_tasks, seed):
    clients = client_ids(num_clients)
    found = arrivals(recipe, clients, num_tasks, seed)
    assert list(found.tasks) == list(clients)
    for client, tasks in found.tasks.items():
        assert len(tasks) == found.num_stages
        assert sorted(task for task in tasks if task is not None) == list(range(num_tasks))
        for stage in range(found.num_stages):
            now, before = found.at(client, stage), found.before(client, stage)
            assert set(now).isdisjoint(before)
            assert all(found.stage_of(client, task) == stage for task in now)
            assert all(found.stage_of(client, task) < stage for task in before)
    assert found == arrivals(recipe, clients, num_tasks, seed)


def test_together_is_the_identity():
    found = arrivals(a_recipe("together"), client_ids(3), 4, 0)
    assert found.num_stages == 4
    assert set(found.tasks.values()) == {(0, 1, 2, 3)}


def test_shuffled_orders_differ_between_clients_and_seeds_and_are_even():
    clients = client_ids(200)
    found = arrivals(a_recipe("shuffled"), clients, 5, 0)
    assert found.num_stages == 5
    assert len(set(found.tasks.values())) > 60  # of 120 orders
    assert found.tasks != arrivals(a_recipe("shuffled"), clients, 5, 1).tasks
    firsts = [tasks[0] for tasks in found.tasks.values()]
    assert all(20 < firsts.count(task) < 60 for task in range(5))  # 40 expected


def test_a_clients_order_does_not_depend_on_the_others():
    few, many = (arrivals(a_recipe("shuffled"), client_ids(n), 6, 3) for n in (4, 9))
    assert all(many.tasks[client] == tasks for client, tasks in few.tasks.items())


def test_staggered_clients_start_k_mod_lag_stages_later():
    found = arrivals(a_recipe("staggered", 3), client_ids(5), 2, 0)
    assert list(found.tasks.values()) == [
        (0, 1, None, None),
        (None, 0, 1, None),
        (None, None, 0, 1),
        (0, 1, None, None),
        (None, 0, 1, None),
    ]


@pytest.mark.parametrize(
    ("arrival", "lag"), [("staggered", None), ("shuffled", 2), ("together", 2)]
)
def test_lag_belongs_to_staggered(arrival, lag):
    with pytest.raises(ValueError, match="lag goes with arrival"):
        a_recipe(arrival, lag)
