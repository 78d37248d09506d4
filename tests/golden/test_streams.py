"""Whole runs in which clients are at different tasks: what they train on, resume, same bits."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

import clients.trainer
from clients.data import classes_of
from clients.state_store import ClientStateStore
from orchestrator.conduct import submit
from orchestrator.launch import run_in_process
from orchestrator.store.base import RunStatus
from orchestrator.summary import show
from strategies.types import client_ids
from tests.conftest import tiny_config
from tests.golden.test_runs import assert_same_bits, traffic

PAIRS = {"kind": "class-incremental", "classes_per_task": 2}
STREAMS = {
    "shuffled": {**PAIRS, "arrival": "shuffled"},
    "staggered": {**PAIRS, "arrival": "staggered", "lag": 3},
}
STAGES = {"shuffled": 5, "staggered": 7}
NOTICED = {**PAIRS, "boundaries": "detected"}


def a_config(name: str, **changes):
    """``noticed`` has rounds enough to learn a task before the next one comes."""
    rounds = 3 if name == "noticed" else 1
    stream = STREAMS.get(name, NOTICED)
    return tiny_config(stream=stream, learning__rounds_per_task=rounds, **changes)


@pytest.fixture
def runs_seen(monkeypatch):
    """Every local training of the process as it began."""
    seen, train = [], clients.trainer.train

    def watched(run, methods):
        seen.append((run, run.allowed.numpy().copy()))
        return train(run, methods)

    monkeypatch.setattr(clients.trainer, "train", watched)
    return seen


@pytest.mark.parametrize("arrival", sorted(STREAMS))
def test_a_client_trains_on_and_answers_with_what_it_has_met(arrival, home, run_here, runs_seen):
    config = a_config(arrival)
    run_id, timetable = run_here(config), config.arrivals(5)
    trained = [
        (reply.client_id, record.task_index)
        for record in home.store().rounds(run_id)
        if record.kind == "train"
        for reply in record.replies
    ]
    assert len(trained) == len(runs_seen)
    for (client, stage), (run, allowed) in zip(trained, runs_seen, strict=True):
        now, before = timetable.at(client, stage), timetable.before(client, stage)
        data = run.dataset
        assert (run.task_index, run.work.tasks) == (stage, now)
        assert set(run.known) == set(classes_of(data.tasks, before))
        assert set(data.train.tasks[run.new_ids]) == set(now)
        met = classes_of(data.tasks, [*before, *now])
        assert allowed.any()
        assert set(np.flatnonzero(allowed)) <= set(met)
        assert set(run.state.memory.tasks) <= {*before, *now}
    states = ClientStateStore(home.client_folder)
    for client in client_ids(3):
        memory = states.load(run_id, client, before_step=99).memory
        assert len(memory.ids)
        np.testing.assert_array_equal(memory.tasks, data.train.tasks[memory.ids])


@pytest.mark.parametrize("arrival", sorted(STREAMS))
def test_lwf_teaches_the_classes_met_before(arrival, home, run_here, runs_seen):
    run_here(a_config(arrival, learning__methods=[{"name": "lwf"}]))
    for run, allowed in runs_seen:
        taught = np.flatnonzero(np.isfinite(run.state.outputs["lwf"].values).any(axis=0))
        assert set(taught) == set(run.known) & set(np.flatnonzero(allowed))
    assert any(len(run.known) for run, _ in runs_seen)


@pytest.mark.parametrize("name", ["shuffled", "staggered", "noticed"])
def test_a_stopped_run_goes_on_to_the_same_bits(name, home, run_here):
    config, store = a_config(name), home.store()
    whole, other = run_here(config), submit(config, home)

    def stop_after_four() -> None:
        if len(store.rounds(other)) == 4:
            raise KeyboardInterrupt

    stopped = run_in_process(other, config, home, on_progress=stop_after_four)
    assert stopped is store.get_run(other).status is RunStatus.INTERRUPTED
    assert run_in_process(other, config, home, on_progress=lambda: None) is RunStatus.COMPLETED
    assert_same_bits(home, whole, other)
    assert traffic(home, whole) == traffic(home, other)
    assert noticed(home, whole) == noticed(home, other)


@pytest.mark.parametrize("arrival", sorted(STREAMS))
def test_everything_is_on_record_by_stage(arrival, home, run_here):
    run_id = run_here(a_config(arrival, evaluation__each_round=True))
    store = home.store()
    record, rounds = store.get_run(run_id), store.rounds(run_id)
    shown = show(record, rounds, store.events(run_id))
    assert len(shown["accuracy_matrix"]) == STAGES[arrival] + 1
    assert shown["last_row"] == STAGES[arrival]
    assert shown["tasks_learnt"] == 5
    assert record.progress["stages"] == STAGES[arrival]
    assert record.progress["acc"] == pytest.approx(shown["acc"])
    assert shown["acc"] > 0
    report = (home.run_folder(run_id) / "report.html").read_text()
    assert f"stage {STAGES[arrival]}" in report


def noticed(home, run_id):
    """Per client its training rounds as (stage, whether a boundary was noticed), in order."""
    found = dict[str, list[tuple[int, bool]]]()
    for record in home.store().rounds(run_id):
        for reply in record.replies if record.kind == "train" else ():
            boundary = bool(reply.metrics.get("boundary"))
            found.setdefault(reply.client_id, []).append((record.task_index, boundary))
    return found


def test_boundaries_are_noticed_where_they_are(home, run_here):
    """Five tasks of two digits: every change is noticed in its first round, and nothing else."""
    run_id = run_here(a_config("noticed", federation__clients=4, learning__local_steps=8))
    hits = changes = wrong = 0
    for rounds in noticed(home, run_id).values():
        assert rounds[0][1]
        for (before, _), (stage, boundary) in pairwise(rounds):
            changes += stage != before
            hits += boundary and stage != before
            wrong += boundary and stage == before
    assert hits >= 0.9 * changes
    assert wrong <= 1
