"""A run on a federation across its restarts."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
from rich.console import Console

from orchestrator.cli.remote_run import RemoteRun
from orchestrator.conduct import FLOWER_RUN, submit
from orchestrator.deployment.control import FlowerStatus
from orchestrator.restarts import RESTARTED
from orchestrator.store.base import RunStatus
from strategies.errors import TransportError
from tests.conftest import tiny_config


@dataclass
class SuperLink:
    """Does with each submission what it is told; None means that it is away."""

    home: object
    serverapps: list
    submitted: list[dict] = field(default_factory=list)
    connection: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(address="s:1"))
    status_now: FlowerStatus | None = None

    def submit(self, run_config):
        serverapp = self.serverapps.pop(0)
        if serverapp is None:
            raise TransportError("the SuperLink at s:1 does not answer")
        self.submitted.append(run_config)
        number = len(self.submitted)
        self.status_now = serverapp(self.home, number, run_config.get("run-id"))
        return number

    def status(self, _):
        return self.status_now

    def carried(self, restarts):
        out = io.StringIO()
        console = Console(file=out, width=200)
        ending = RemoteRun(self, tiny_config(), self.home, console).carried(None, restarts)
        return ending, out.getvalue()


def carried_on(home, number, run_id):
    """A ServerApp at work; the run's id."""
    store = home.store()
    run_id = run_id or submit(tiny_config(), home, {FLOWER_RUN: str(number)})
    startable = (RunStatus.CREATED, RunStatus.INTERRUPTED)
    store.transition(run_id, RunStatus.RUNNING, expected=startable, reason="started")
    return run_id


def dies(home, number, run_id):
    carried_on(home, number, run_id)
    return FlowerStatus(status="finished", ended="failed", details="no heartbeat")


def is_stopped(home, number, run_id):
    carried_on(home, number, run_id)
    return FlowerStatus(status="finished", ended="stopped", details="")


def completes(home, number, run_id):
    ours = carried_on(home, number, run_id)
    done = (RunStatus.RUNNING,)
    home.store().transition(ours, RunStatus.COMPLETED, expected=done, reason="all steps done")
    return FlowerStatus(status="finished", ended="completed", details="")


def restarts_of(home, run_id):
    return [event for event in home.store().events(run_id) if event.kind == RESTARTED]


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr("orchestrator.cli.remote.time.sleep", lambda _: None)


def test_a_serverapp_that_dies_is_followed_by_another_flower_run_of_the_same_run(home):
    superlink = SuperLink(home, [dies, None, None, completes])
    ending, shown = superlink.carried(2)
    assert ending.status is RunStatus.COMPLETED
    assert [list(config) for config in superlink.submitted] == [["config"], ["run-id"]]
    assert superlink.submitted[1] == {"run-id": ending.run_id}
    (restarted,) = restarts_of(home, ending.run_id)
    assert "no heartbeat" in restarted.message
    events = home.store().events(ending.run_id)
    (link,) = [event for event in events if event.kind == "continued"]
    assert link.data == {FLOWER_RUN: "2"}
    assert "restart 1 of 2" in shown


def test_a_run_that_was_stopped_by_flowers_hand_is_not_restarted(home):
    superlink = SuperLink(home, [is_stopped])
    ending, _ = superlink.carried(2)
    assert (ending.status, ending.asked) == (RunStatus.INTERRUPTED, True)
    assert restarts_of(home, ending.run_id) == []


def test_a_superlink_that_stays_away_leaves_an_interrupted_run(home, monkeypatch):
    monkeypatch.setattr("orchestrator.cli.remote_run.AWAY_SECONDS", 0.0)
    superlink = SuperLink(home, [dies, *[None] * 9])
    ending, shown = superlink.carried(1)
    assert ending.status is RunStatus.INTERRUPTED
    assert "does not answer" in shown
    assert len(superlink.submitted) == 1


def test_without_restarts_a_dead_serverapp_is_the_end(home):
    superlink = SuperLink(home, [dies])
    ending, _ = superlink.carried(0)
    assert ending.status is RunStatus.INTERRUPTED
    assert restarts_of(home, ending.run_id) == []
