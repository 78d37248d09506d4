"""A run followed from afar: whose word counts, and what is made of it."""

from __future__ import annotations

import io
import signal
from dataclasses import dataclass, field
from datetime import timedelta
from types import SimpleNamespace

import pytest
from rich.console import Console

from orchestrator.cli.remote import Remote
from orchestrator.conduct import FLOWER_RUN, reclaim, submit
from orchestrator.deployment.control import FlowerStatus
from orchestrator.server_app import _interruptible
from orchestrator.store.base import RunStatus
from strategies.errors import RunInterrupted, TransportError
from tests.conftest import tiny_config

FLOWER_ID = 7


@dataclass
class Script:
    """A SuperLink that says one thing after the other; None means that it does not answer."""

    says: list[FlowerStatus | None]
    stopped: list[int] = field(default_factory=list)
    connection: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(address="s:1"))

    def status(self, run):
        said = self.says.pop(0) if len(self.says) > 1 else self.says[0]
        if said is None:
            raise TransportError("the SuperLink at s:1 does not answer")
        return said

    def stop(self, run):
        self.stopped.append(run)


def flower(status, ended="", details=""):
    return FlowerStatus(status=status, ended=ended, details=details)


def follow(script, store=None, run_id=None):
    out = io.StringIO()
    remote = Remote(script, FLOWER_ID, Console(file=out, width=200), store, run_id)
    return remote.follow(), out.getvalue(), remote


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr("orchestrator.cli.remote._ASK_SECONDS", 0.0)
    monkeypatch.setattr("orchestrator.cli.remote.time.sleep", lambda _: None)


@pytest.mark.parametrize(
    ("ended", "details", "expected"),
    [
        ("completed", "", RunStatus.COMPLETED),
        ("failed", "ServerApp failed with exception: boom", RunStatus.FAILED),
        ("failed", "ServerApp failed with exception: interrupted: asked", RunStatus.INTERRUPTED),
        ("stopped", "", RunStatus.INTERRUPTED),
    ],
)
def test_without_a_common_database_flowers_word_counts(ended, details, expected):
    script = Script([flower("pending"), flower("running"), flower("finished", ended, details)])
    status, shown, _ = follow(script)
    assert status is expected
    assert "pending on s:1" in shown
    assert "running on s:1" in shown
    assert details in shown.replace("\n", " ")


def test_the_run_is_found_by_flowers_number_and_its_own_record_counts(home):
    store = home.store()
    ours = submit(tiny_config(), home, {FLOWER_RUN: str(FLOWER_ID)})
    store.transition(ours, RunStatus.RUNNING, expected=(RunStatus.CREATED,), reason="")
    other = submit(tiny_config(), home, {FLOWER_RUN: "8"})
    store.transition(ours, RunStatus.FAILED, expected=(RunStatus.RUNNING,), reason="no clients")
    status, shown, remote = follow(Script([flower("finished", "completed")]), store)
    assert (status, remote.run_id) == (RunStatus.FAILED, ours)
    assert ours in shown
    assert other not in shown


def test_a_serverapp_that_died_leaves_an_interrupted_run(home):
    store = home.store()
    ours = submit(tiny_config(), home, {FLOWER_RUN: str(FLOWER_ID)})
    store.transition(ours, RunStatus.RUNNING, expected=(RunStatus.CREATED,), reason="")
    status, _, _ = follow(Script([flower("finished", "failed", "killed")]), store)
    assert status is RunStatus.INTERRUPTED
    assert "killed" in store.get_run(ours).reason


def test_a_lost_superlink_interrupts_once_the_lease_has_run_out(home):
    store = home.store()
    ours = submit(tiny_config(), home, {FLOWER_RUN: str(FLOWER_ID)})
    store.transition(ours, RunStatus.RUNNING, expected=(RunStatus.CREATED,), reason="")
    store.renew_lease(ours, "owner", timedelta(seconds=0.3), progress={})
    status, _, _ = follow(Script([flower("running"), flower("running"), None]), store)
    assert status is RunStatus.INTERRUPTED
    assert "does not answer" in store.get_run(ours).reason


def test_what_is_interrupted_can_be_resumed_at_once(home):
    store = home.store()
    ours = submit(tiny_config(), home, {FLOWER_RUN: str(FLOWER_ID)})
    store.transition(ours, RunStatus.RUNNING, expected=(RunStatus.CREATED,), reason="")
    store.renew_lease(ours, "killed", timedelta(seconds=0.5), progress={})
    status, _, _ = follow(Script([flower("finished", "failed", "killed")]), store)
    assert status is RunStatus.INTERRUPTED
    assert reclaim(ours, store).status is RunStatus.INTERRUPTED


def test_a_serverapp_that_says_itself_how_it_ended_is_heard(home, monkeypatch):
    store = home.store()
    ours = submit(tiny_config(), home, {FLOWER_RUN: str(FLOWER_ID)})
    store.transition(ours, RunStatus.RUNNING, expected=(RunStatus.CREATED,), reason="")
    store.renew_lease(ours, "owner", timedelta(seconds=60), progress={})

    def ends(_):
        alive = (RunStatus.RUNNING,)
        store.transition(ours, RunStatus.COMPLETED, expected=alive, reason="all steps done")

    monkeypatch.setattr("orchestrator.cli.remote.time.sleep", ends)
    status, _, _ = follow(Script([flower("finished", "failed", "lost")]), store)
    assert status is RunStatus.COMPLETED


def test_a_lost_superlink_without_a_database_is_an_error():
    with pytest.raises(TransportError):
        follow(Script([flower("running"), None]))


def test_a_signal_interrupts_a_serverapps_run_and_is_given_back():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(RunInterrupted, match="SIGTERM"), _interruptible():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_second_signal_does_not_break_off_what_the_first_began():
    with _interruptible():
        with pytest.raises(RunInterrupted):
            signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)


def test_a_run_of_a_federation_is_not_continued_by_simulated_clients(home):
    from orchestrator.conduct import require_simulated
    from strategies.errors import ConfigError

    begun_there = submit(tiny_config(), home, {FLOWER_RUN: "7"})
    with pytest.raises(ConfigError, match="--on HOST:PORT"):
        require_simulated(home.store().get_run(begun_there))
    require_simulated(home.store().get_run(submit(tiny_config(), home)))
