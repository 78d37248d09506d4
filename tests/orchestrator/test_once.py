"""``--once``: which earlier run is carried on."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from typer.testing import CliRunner

from orchestrator.cli.app import app
from orchestrator.conduct import submit
from orchestrator.config import load_config
from orchestrator.once import earlier_run
from orchestrator.store.base import RunStatus
from tests.conftest import tiny_config


def led(store, run_id):
    store.transition(run_id, RunStatus.RUNNING, expected=(RunStatus.CREATED,), reason="started")
    assert store.renew_lease(run_id, "elsewhere/1/1", timedelta(seconds=60))


def unheard(_):
    raise AssertionError


def test_there_is_none_before_the_first_and_none_of_another_configuration(home):
    assert earlier_run(tiny_config(), home.store(), unheard, unheard) is None
    submit(tiny_config(seed=7), home)
    assert earlier_run(tiny_config(), home.store(), unheard, unheard) is None


def test_it_is_the_newest_of_the_same_configuration(home):
    submit(tiny_config(), home)
    newest = submit(tiny_config(), home)
    submit(tiny_config(seed=7), home)
    found = earlier_run(tiny_config(), home.store(), unheard, unheard)
    assert found is not None
    assert found.run_id == newest


def test_one_that_somebody_leads_is_waited_for(home):
    store, run_id, said, slept = home.store(), submit(tiny_config(), home), [], []
    led(store, run_id)

    def sleep(seconds):
        slept.append(seconds)
        if len(slept) == 3:
            store.transition(
                run_id, RunStatus.COMPLETED, expected=(RunStatus.RUNNING,), reason="all steps done"
            )

    found = earlier_run(tiny_config(), store, said.append, sleep)
    assert found is not None
    assert found.status is RunStatus.COMPLETED
    assert len(slept) == 3
    assert said == [f"run {run_id} of this configuration is under way; waiting for it to end"]


def test_the_command_does_not_repeat_what_is_done(home, monkeypatch):
    """Its exit code is that of the run it found."""
    monkeypatch.setenv("PERENNIAL_HOME", str(home.folder))
    monkeypatch.setenv("PERENNIAL_DATABASE", home.database_url)
    path = Path(__file__).parents[2] / "examples" / "digits.toml"
    for status, code in ((RunStatus.COMPLETED, 0), (RunStatus.FAILED, 1)):
        run_id = submit(load_config(path, ()), home)
        led(home.store(), run_id)
        home.store().transition(run_id, status, expected=(RunStatus.RUNNING,), reason="over")
        outcome = CliRunner().invoke(app, ["run", str(path), "--once"])
        assert outcome.exit_code == code, outcome.output
        assert run_id in outcome.output
    assert len(home.store().list_runs()) == 2
