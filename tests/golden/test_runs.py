"""Whole runs on a tiny model: same seed same bits, interrupted or not, and everything on record."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import pytest

from orchestrator.checkpoint import load_state
from orchestrator.conduct import conduct, reclaim, submit
from orchestrator.launch import run_in_process
from orchestrator.metrics import AccuracyMatrix, Flips
from orchestrator.report.forgetting import explain
from orchestrator.store import SqlRunStore
from orchestrator.store.base import RunStatus
from orchestrator.summary import show
from strategies.errors import ConfigError
from strategies.types import client_ids
from tests.conftest import tiny_config


def final_tensors(home, run_id):
    state = load_state(home.store().last_checkpoint(run_id), home.blobs())
    return state.tensors


def scores(home, run_id):
    """Every cell of every client, without what depends on the clock."""
    return [
        (
            *(s.client_id, s.after_task, s.task_index, s.num_examples, s.num_correct),
            *(s.num_lost, s.num_gained, s.num_compared),
        )
        for r in home.store().rounds(run_id)
        for s in r.scores
    ]


def traffic(home, run_id):
    return [
        (x.assignment_id.split("/", 1)[1], x.bytes_down)
        for r in home.store().rounds(run_id)
        for x in r.replies
    ]


def assert_same_bits(home, first, second):
    a, b = final_tensors(home, first), final_tensors(home, second)
    assert a.keys() == b.keys()
    for key, value in a.items():
        np.testing.assert_array_equal(value, b[key], err_msg=str(key))
    assert scores(home, first) == scores(home, second)


def test_the_same_seed_gives_the_same_bits(home, run_here):
    first, second = run_here(tiny_config()), run_here(tiny_config())
    assert_same_bits(home, first, second)
    assert traffic(home, first) == traffic(home, second)


def test_no_step_reads_what_is_on_record(home, monkeypatch):
    """Else a round would take the longer, the more of them there were."""

    def read(*_: object) -> None:
        raise AssertionError("the whole record was read")

    monkeypatch.setattr(SqlRunStore, "rounds", read)
    config = tiny_config()
    run_id = submit(config, home)
    assert run_in_process(run_id, config, home, on_progress=lambda: None) is RunStatus.COMPLETED, (
        home.store().get_run(run_id).reason
    )


def test_another_seed_gives_other_bits(home, run_here):
    first, second = run_here(tiny_config()), run_here(tiny_config(seed=1))
    a, b = final_tensors(home, first), final_tensors(home, second)
    assert any(not np.array_equal(a[key], b[key]) for key in a)


def test_everything_is_on_record(home, run_here):
    run_id = run_here(tiny_config())
    store = home.store()
    record, rounds = store.get_run(run_id), store.rounds(run_id)
    assert [r.kind for r in rounds] == [
        "evaluate",
        *["train"] * 2,
        "evaluate",
        *["train"] * 2,
        "evaluate",
    ]
    assert record.task_names == ("low", "high")
    for r in rounds:
        assert all(reply.status == "ok" and reply.bytes_down > 0 for reply in r.replies)
        assert {"exchange", "aggregate", "checkpoint"} <= r.seconds.keys()
    trained = [reply for r in rounds if r.kind == "train" for reply in r.replies]
    assert all(reply.num_examples > 0 and "loss" in reply.metrics for reply in trained)
    assert all(set(reply.ranks.values()) == {0, 2} for reply in trained)
    assert [e.kind for e in store.events(run_id)].count("published") == 2
    shown = show(record, rounds, store.events(run_id))
    assert shown["bytes_up"] == sum(reply.bytes_up for r in rounds for reply in r.replies)
    assert len(shown["accuracy_matrix"]) == 3
    assert shown["accuracy_matrix"][2][1] is not None
    assert record.progress["acc"] == pytest.approx(shown["acc"])


def test_flips_account_for_every_change_in_accuracy(home, run_here):
    """PFR − NFR is the change between two rows of the matrix, task by task."""
    forgetful = tiny_config(learning__methods=[{"name": "finetune"}], learning__local_steps=20)
    rounds = home.store().rounds(run_here(forgetful))
    scores = [score for r in rounds for score in r.scores]
    matrix = AccuracyMatrix.of(scores, 2).values
    for task in (0, 1):
        flips = Flips.of(scores, 1, [task])
        assert flips.num_compared == sum(
            s.num_examples for s in scores if (s.after_task, s.task_index) == (1, task)
        )
        assert flips.pfr - flips.nfr == pytest.approx(matrix[2, task] - matrix[1, task])
    assert Flips.of(scores, 1, [0]).num_lost > 0
    assert Flips.of(scores, 0, [0, 1]).num_compared == 0


def test_the_drift_of_every_trained_group_is_on_record(home, run_here):
    rounds = home.store().rounds(run_here(tiny_config()))
    for r in rounds:
        trained = (
            {group for reply in r.replies for group in reply.ranks} if r.kind == "train" else set()
        )
        assert r.drift.keys() == trained
        assert all(moved > 0 for moved in r.drift.values())


@pytest.mark.parametrize("stop_after", [0, 1, 2, 3, 5])
def test_a_run_stopped_after_any_step_resumes_to_the_same_bits(home, run_here, stop_after):
    from clients.settings import ClientSettings
    from clients.trainer import LocalTrainer
    from orchestrator.transport import InProcessTransport

    config = tiny_config()
    whole, run_id = run_here(config), submit(config, home)
    store = home.store()

    def stop_when_due() -> None:
        if (
            len(store.rounds(run_id)) > stop_after
            and store.get_run(run_id).status is RunStatus.RUNNING
        ):
            store.transition(
                run_id, RunStatus.STOPPING, expected=[RunStatus.RUNNING], reason="test"
            )

    trainer = LocalTrainer(
        ClientSettings(cache_folder=home.cache_folder, state_folder=home.client_folder)
    )
    endpoints = {
        client: lambda message, client=client: trainer.answer(client, message)
        for client in client_ids(3)
    }
    transport = InProcessTransport(endpoints, stop_when_due)
    assert conduct(run_id, config, transport, home) is RunStatus.INTERRUPTED
    assert len(store.rounds(run_id)) <= stop_after + 2
    assert run_in_process(run_id, config, home, on_progress=lambda: None) is RunStatus.COMPLETED
    assert_same_bits(home, whole, run_id)


def test_a_run_whose_orchestrator_was_killed_is_continued_once_its_lease_is_over(home):
    run_id, store = submit(tiny_config(), home), home.store()
    store.transition(run_id, RunStatus.RUNNING, expected=[RunStatus.CREATED], reason="started")
    store.renew_lease(run_id, "dead", timedelta(seconds=60))
    with pytest.raises(ConfigError, match="whose lease lasts until"):
        reclaim(run_id, store)
    store.renew_lease(run_id, "dead", timedelta(seconds=-1))
    assert reclaim(run_id, store).status is RunStatus.INTERRUPTED
    done = run_in_process(run_id, tiny_config(), home, on_progress=lambda: None)
    assert done is RunStatus.COMPLETED
    with pytest.raises(ConfigError, match="a completed run, expected an interrupted"):
        reclaim(run_id, store)


def test_joint_training_fills_the_first_and_last_row_only(home, run_here):
    run_id = run_here(tiny_config(learning__mode="joint"))
    store = home.store()
    shown = show(store.get_run(run_id), store.rounds(run_id), store.events(run_id))
    assert shown["accuracy_matrix"][1] == [None, None]
    assert None not in shown["accuracy_matrix"][2]


def test_all_clients_failing_fails_the_run_with_reasons_and_keeps_what_was_done(home):
    from clients.settings import ClientSettings
    from clients.trainer import LocalTrainer
    from orchestrator.transport import InProcessTransport
    from strategies.errors import ModelError

    config = tiny_config()
    run_id = submit(config, home)
    trainer = LocalTrainer(
        ClientSettings(cache_folder=home.cache_folder, state_folder=home.client_folder)
    )

    def endpoint(client):
        def answer(message: bytes) -> bytes:
            if len(home.store().rounds(run_id)) >= 2:
                raise ModelError(f"{client} is on fire")
            return trainer.answer(client, message)

        return answer

    transport = InProcessTransport({client: endpoint(client) for client in client_ids(3)})
    assert conduct(run_id, config, transport, home) is RunStatus.FAILED
    record = home.store().get_run(run_id)
    reason = [e for e in home.store().events(run_id) if e.kind == "status"][-1].message
    assert all(f"{client}" in reason for client in client_ids(3))
    assert "on fire" in reason
    assert record.checkpoint is not None
    assert len(home.store().rounds(run_id)) == 2


def test_one_failing_client_is_recorded_and_the_run_goes_on(home):
    from clients.settings import ClientSettings
    from clients.trainer import LocalTrainer
    from orchestrator.transport import InProcessTransport
    from strategies.errors import ModelError

    config = tiny_config()
    run_id = submit(config, home)
    trainer = LocalTrainer(
        ClientSettings(cache_folder=home.cache_folder, state_folder=home.client_folder)
    )
    ids = client_ids(3)

    def broken(message: bytes) -> bytes:
        if home.store().rounds(run_id):
            raise ModelError("out of order")
        return trainer.answer(ids[1], message)

    endpoints = {client: lambda m, c=client: trainer.answer(c, m) for client in ids} | {
        ids[1]: broken
    }
    assert conduct(run_id, config, InProcessTransport(endpoints), home) is RunStatus.COMPLETED
    failed = [x for r in home.store().rounds(run_id) for x in r.replies if x.status == "failed"]
    assert {x.client_id for x in failed} == {ids[1]}
    assert all("out of order" in x.failure_detail for x in failed)
    assert any(e.kind == "client-failed" for e in home.store().events(run_id))


def test_scoring_each_round_rides_on_training_messages(home, run_here):
    config = tiny_config(evaluation__each_round=True, evaluation__max_examples=5)
    rounds = home.store().rounds(run_here(config))
    training = [r for r in rounds if r.kind == "train"]
    assert all(score.mid_task for r in training for score in r.scores)
    assert [sorted({s.task_index for s in r.scores}) for r in training] == [
        [0],
        [0],
        [0, 1],
        [0, 1],
    ]
    assert all(score.num_examples <= 5 for r in training for score in r.scores)


def test_intruders_are_counted_after_every_task_where_they_are_asked_for(home, run_here):
    run_id = run_here(tiny_config(evaluation__intruders=True, learning__learning_rate=0.3))
    rounds = home.store().rounds(run_id)
    scored = [r for r in rounds if r.kind == "evaluate"]
    assert ["intruders" in r.metrics for r in scored] == [False, True, True]
    assert scored[-1].metrics["intruders"] > 0
    assert not any("intruders" in r.metrics for r in rounds if r.kind == "train")
    shown = show(home.store().get_run(run_id), rounds, [])
    assert shown["rounds"][-1]["intruders"] == scored[-1].metrics["intruders"]
    assert any("Intruder dimensions" in sentence for sentence in explain(shown))
    with pytest.raises(ConfigError, match=r"evaluation\.intruders"):
        tiny_config(evaluation__intruders=True, strategy__rank={"name": "dense"})


def test_training_densely_sends_whole_groups(home, run_here):
    run_id = run_here(tiny_config(strategy__rank={"name": "dense"}))
    store = home.store()
    trained = [x for r in store.rounds(run_id) if r.kind == "train" for x in r.replies]
    assert all(set(reply.ranks.values()) == {0} for reply in trained)
    assert store.get_run(run_id).status is RunStatus.COMPLETED
