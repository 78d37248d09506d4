"""A whole run through the gate: what is withheld is kept aside, and a resumed run decides alike."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from orchestrator.cli.app import app
from orchestrator.conduct import conduct, submit
from orchestrator.launch import run_in_process
from orchestrator.store.base import RunStatus
from orchestrator.summary import show
from tests.conftest import tiny_config
from tests.golden.test_runs import scores

FORGETFUL = {
    "learning__methods": [{"name": "finetune"}],
    "learning__local_steps": 20,
    "publish__require": {"max_drop": 0.05},
}


def kinds(store, run_id):
    return [e.kind for e in store.events(run_id) if e.kind in ("published", "withheld")]


@pytest.fixture
def gated(home, run_here):
    return run_here(tiny_config(**FORGETFUL))


def test_a_state_that_forgets_is_kept_aside_and_the_adapter_stays(home, gated):
    store = home.store()
    record, folder = store.get_run(gated), home.run_folder(gated)
    assert kinds(store, gated) == ["published", "withheld"]
    assert Path(record.adapter_path) == folder / "adapters" / "task-000"
    assert (folder / "candidates" / "task-001" / "adapter_model.safetensors").is_file()
    assert not (folder / "adapters" / "task-001").exists()
    (event,) = [e for e in store.events(gated) if e.kind == "withheld"]
    (reason,) = event.data["reasons"]
    assert reason in event.message
    assert "task 0 'low' lost" in reason
    shown = show(record, store.rounds(gated), store.events(gated))
    assert [r["published"] for r in shown["releases"]] == [True, False]
    assert shown["releases"][1]["reasons"] == [reason]
    assert shown["releases"][1]["path"] == event.data["path"]
    assert reason in (folder / "report.html").read_text().replace("&#39;", "'")


def test_show_says_what_was_withheld_and_export_takes_what_was_published(
    home, gated, tmp_path, monkeypatch
):
    for name, value in home.environment().items():
        monkeypatch.setenv(name, value)
    text = CliRunner().invoke(app, ["show", gated]).stdout
    assert "withheld after task 1 high" in text
    assert "publish.require.max_drop is 0.05" in text
    done = CliRunner().invoke(app, ["export", gated, "--to", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    weights = "adapter_model.safetensors"
    published = home.run_folder(gated) / "adapters" / "task-000" / weights
    assert (tmp_path / "out" / weights).read_bytes() == published.read_bytes()


@pytest.mark.parametrize("step", [3, 6])
def test_a_run_killed_between_commit_and_verdict_settles_it_when_resumed(
    home, gated, step, monkeypatch
):
    """The verdict is not in memory any more; the record gives the same one."""
    from clients.settings import ClientSettings
    from clients.trainer import LocalTrainer
    from orchestrator.gate import Gate
    from orchestrator.transport import InProcessTransport
    from strategies.types import client_ids

    config = tiny_config(**FORGETFUL)
    run_id, store = submit(config, home), home.store()
    settle = Gate.settle

    def dies(self, state):
        if state.step_index - 1 == step:
            raise KeyboardInterrupt
        return settle(self, state)

    trainer = LocalTrainer(
        ClientSettings(cache_folder=home.cache_folder, state_folder=home.client_folder)
    )
    endpoints = {c: lambda m, c=c: trainer.answer(c, m) for c in client_ids(3)}
    monkeypatch.setattr(Gate, "settle", dies)
    with pytest.raises(KeyboardInterrupt):
        conduct(run_id, config, InProcessTransport(endpoints), home)
    monkeypatch.undo()
    assert len(store.rounds(run_id)) == step + 1
    assert len(kinds(store, run_id)) == (step == 6)
    assert store.get_run(run_id).status is RunStatus.INTERRUPTED
    assert run_in_process(run_id, config, home, on_progress=lambda: None) is RunStatus.COMPLETED
    assert kinds(store, run_id) == ["published", "withheld"]
    assert store.get_run(run_id).adapter_path.endswith("adapters/task-000")
    assert scores(home, run_id) == scores(home, gated)


def test_after_a_withheld_state_clients_still_compare_with_the_release(home, run_here):
    tasks = [{"name": str(i), "labels": [str(2 * i), str(2 * i + 1)]} for i in range(5)]
    config = tiny_config(
        **FORGETFUL | {"publish__require": {"max_negative_flips": 0.1}},
        stream__tasks=tasks,
    )
    run_id = run_here(config)
    store = home.store()
    shown = show(store.get_run(run_id), store.rounds(run_id), store.events(run_id))
    releases = shown["releases"]
    assert [r["published"] for r in releases] == [True, False, False, False, False]
    assert [r["compared_with"] for r in releases] == [None, 0, 0, 0, 0]
    matrix = shown["accuracy_matrix"]
    for release in releases[1:]:
        change = matrix[release["task"] + 1][0] - matrix[1][0]
        rates = release["positive_flip_rate"] - release["negative_flip_rate"]
        assert rates == pytest.approx(change)


def test_stages_that_are_no_tasks_are_withheld_by_their_number(home, run_here, monkeypatch):
    """Two tasks in three stages: the last one has no task's name to be told by."""
    run_id = run_here(
        tiny_config(
            stream__arrival="staggered", stream__lag=2, publish__require={"min_accuracy": 1.0}
        )
    )
    for name, value in home.environment().items():
        monkeypatch.setenv(name, value)
    text = CliRunner().invoke(app, ["show", run_id]).output
    assert [f"withheld after stage {index}" in text for index in range(3)] == [True] * 3
    assert "no state met publish.require" in text
