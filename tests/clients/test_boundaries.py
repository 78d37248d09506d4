"""Where a client notices that a task begins: on made-up levels, and what its methods get to see."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clients.boundaries import Noticed, entropies, is_boundary
from clients.device import CPU
from clients.methods.base import ClientMethod
from clients.state_store import ClientState, ClientStateStore, Watch
from strategies.errors import ConfigError
from strategies.protocols import ReplayMemory
from strategies.rng import rng_for
from strategies.types import ClientId, Update
from tests.clients.test_trainer import IDS, lab
from tests.conftest import tiny_config

__all__ = ["lab"]  # a fixture
DETECTED = {"kind": "class-incremental", "classes_per_task": 2, "boundaries": "detected"}


class Diary(ClientMethod):
    """Writes down what the hooks saw."""

    def __init__(self):
        self.pages = []

    def task_start(self, run):
        self.pages.append(("start", run.task_index, run.new_ids.tolist(), run.known.tolist()))

    def task_end(self, run):
        allowed = torch.nonzero(run.allowed).flatten().tolist()
        self.pages.append(("end", run.task_index, run.new_ids.tolist(), allowed))


def a_life(levels, jump=0.5, ids_of=lambda at: np.arange(3)):
    """Rounds in which the signal is as given; example i has class i."""
    state = ClientState(memory=ReplayMemory.empty(4))
    diary, found = Diary(), []
    for at, level in enumerate(levels):
        new_ids = ids_of(at)
        allowed = torch.zeros(200, dtype=torch.bool)
        allowed[: new_ids.max() + 1] = True
        run = SimpleNamespace(
            state=state, new_ids=new_ids, allowed=allowed, noted={}, task_index=at,
            memory_task=at, known=None, model=SimpleNamespace(device=CPU),
            dataset=SimpleNamespace(train=SimpleNamespace(labels=np.arange(200))),
        )  # fmt: skip
        watcher = Noticed(signal=lambda run, ids, level=level: level, jump=jump, rng=rng_for(0, at))
        watcher.open(run, [diary])
        watcher.close(run, [diary])
        assert run.memory_task == run.task_index == run.state.task_index
        assert run.noted["boundary_level"] == level
        assert torch.equal(run.allowed, allowed)
        state = run.state
        found.append(run.noted["boundary"])
    return found, diary.pages, state


def test_a_boundary_is_a_rise_above_the_lowest_since_the_last():
    levels = [0.7, 0.4, 0.1, 0.9, 0.5, 0.2, 0.3, 1.2]
    found, _, state = a_life(levels)
    assert found == [1, 0, 0, 1, 0, 0, 0, 1]
    assert state.task_index == 2
    assert state.watch.lowest == 1.2


def test_a_slow_rise_counts_and_a_level_that_stays_high_counts_once():
    assert a_life([0.0, 0.2, 0.4, 0.6, 0.8, 1.0])[0] == [1, 0, 0, 1, 0, 0]
    assert a_life([0.0, 0.9, 0.9, 0.9])[0] == [1, 1, 0, 0]


@given(st.lists(st.floats(0, 3), min_size=1, max_size=20), st.floats(0.1, 2))
def test_falling_levels_are_one_task_and_a_rise_by_less_than_the_jump_is_none(levels, jump):
    falling = sorted(levels, reverse=True)
    assert a_life(falling, jump)[0] == [1] + [0] * (len(levels) - 1)
    flat = [level * jump / 4 for level in levels]
    assert sum(a_life(flat, jump)[0]) == 1


def test_the_first_round_begins_the_first_task():
    assert is_boundary(0.0, None, 1.0)
    assert not is_boundary(1.0, 0.0, 1.0)
    assert is_boundary(1.1, 0.0, 1.0)


def test_the_old_task_ends_with_what_the_client_had_of_it():
    _, pages, state = a_life([0.1, 0.1, 0.9], ids_of=lambda at: np.arange(2) + (2 if at > 1 else 0))
    assert [page[:2] for page in pages] == [("start", 0), ("end", 0), ("start", 1)]
    assert sorted(pages[1][2]) == [0, 1]  # the examples of the round before
    assert pages[1][3] == [0, 1]  # the classes held by then
    assert pages[2][2:] == ([2, 3], [0, 1])
    assert state.watch.held.tolist() == [0, 1, 2, 3]


def test_the_window_is_bounded():
    _, _, state = a_life([0.1], ids_of=lambda at: np.arange(150))
    assert len(state.watch.window) == 64


def test_entropy_counts_answers_only():
    none = -np.inf
    logits = np.array([[0, 0, none], [0, 0, 0], [50, -50, none], [np.log(3), 0, none]], np.float32)
    by_hand = [np.log(2), np.log(3), 0.0, -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))]
    np.testing.assert_allclose(entropies(logits), by_hand, atol=1e-6)


def test_what_is_watched_survives_and_older_files_have_none(tmp_path):
    store, client = ClientStateStore(tmp_path), ClientId("client-0")
    plain = ClientState(memory=ReplayMemory.empty(2))
    watch = Watch(lowest=0.0, window=np.array([3, 1]), known=np.array([2]), held=np.array([2, 5]))
    store.save("run", client, 1, plain)
    store.save("run", client, 2, ClientState(memory=plain.memory, task_index=4, watch=watch))
    assert store.load("run", client, before_step=2).watch.lowest is None
    found = store.load("run", client, before_step=3).watch
    assert found.lowest == 0.0
    for name in ("window", "known", "held"):
        np.testing.assert_array_equal(getattr(found, name), getattr(watch, name))


def rounds_of(bench, *, client) -> list[Update]:
    """The client's answers in all training steps, without any merge in between."""
    from orchestrator.schedule import schedule

    found = []
    for index, step in enumerate(schedule(bench.config, 5)):
        if step.kind != "train":
            continue
        orders = [o for o in bench.plan(index).orders if o.assignment.client_id == client]
        found += [bench.ask(order) for order in orders]
    return found


@pytest.mark.parametrize("signal", ["loss", "entropy"])
def test_answers_say_what_was_noticed_and_memory_has_the_clients_own_count(signal, lab):
    bench = lab(stream={**DETECTED, "boundary_signal": signal})
    answers = rounds_of(bench, client=IDS[0])
    assert answers[0].metrics["boundary"] == 1
    assert all(np.isfinite(answer.metrics["boundary_level"]) for answer in answers)
    own = int(sum(answer.metrics["boundary"] for answer in answers))
    state = ClientStateStore(bench.trainer.settings.state_folder).load(
        "run", IDS[0], before_step=99
    )
    assert state.task_index == own - 1
    assert set(state.memory.tasks) <= set(range(own))
    assert len(set(state.memory.ids)) == len(state.memory.ids)
    again = lab(stream={**DETECTED, "boundary_signal": signal})
    assert [a.metrics for a in rounds_of(again, client=IDS[0])] == [a.metrics for a in answers]


def test_given_boundaries_measure_nothing(lab):
    bench = lab()
    answer = bench.ask(bench.plan(1).orders[0])
    assert not {"boundary", "boundary_level"} & answer.metrics.keys()


def test_examples_are_offered_once_whatever_is_noticed(lab):
    """A jump of almost nothing: false alarms in nearly every round."""
    bench = lab(stream={**DETECTED, "boundary_jump": 1e-9}, replay__examples_per_client=500)
    rounds_of(bench, client=IDS[0])
    store = ClientStateStore(bench.trainer.settings.state_folder)
    memory = store.load("run", IDS[0], before_step=99).memory
    assert len(set(memory.ids)) == len(memory.ids) == memory.num_offered


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"learning__mode": "joint"}, "stream.boundaries"),
        (
            {
                "model__task": "causal-lm",
                "stream": {"kind": "domain-incremental", "task_column": "task",
                           "boundaries": "detected", "boundary_signal": "entropy"},
                "data": {"source": "huggingface", "name": "x"},
            },
            "stream.boundary_signal",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_detected_is_a_fault(changes, key):
    with pytest.raises(ConfigError) as caught:
        tiny_config(**{"stream": DETECTED, **changes})
    assert [fault.key for fault in caught.value.faults] == [key]
