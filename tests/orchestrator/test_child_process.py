"""What becomes of a run whose child process dies, or that is asked to stop."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from datetime import timedelta

import psutil
import pytest

from orchestrator.conduct import submit
from orchestrator.launch import Simulation
from orchestrator.owners import new_owner
from orchestrator.store.base import RunStatus
from strategies.errors import StoreUnreachableError
from tests.conftest import tiny_config

WAITING = "import time; time.sleep(600)"
WITH_A_CHILD = f"""
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {WAITING!r}])
print(child.pid, flush=True)
child.wait()
"""


@pytest.fixture
def begin(home):
    """A submitted run and a child process that stands for it."""
    begun, before = [], signal.getsignal(signal.SIGTERM)

    def make(code=WAITING):
        process = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True
        )
        begun.append(process)
        return Simulation(submit(tiny_config(), home), home, process, home.folder / "run.log")

    yield make
    for process in begun:
        process.kill()
        process.wait()
        process.stdout.close()
    signal.signal(signal.SIGTERM, before)


def started(simulation):
    store, created = simulation.home.store(), (RunStatus.CREATED,)
    store.transition(simulation.run_id, RunStatus.RUNNING, expected=created, reason="started")
    return store


@pytest.mark.parametrize("ours", [True, False])
def test_a_dead_process_ends_its_run_and_leaves_alone_what_another_leads(begin, ours, monkeypatch):
    child = begin()
    store = started(child)
    if ours:
        monkeypatch.setattr("orchestrator.owners.os.getpid", lambda: child.process.pid)
    owner = new_owner()
    monkeypatch.undo()
    store.renew_lease(child.run_id, owner, timedelta(seconds=60))
    child.process.kill()
    assert child.watch(lambda: None) is RunStatus.INTERRUPTED
    run = store.get_run(child.run_id)
    assert ("ended with code -9" in run.reason) == ours
    assert run.status is (RunStatus.INTERRUPTED if ours else RunStatus.RUNNING)
    assert run.lease_owner == (None if ours else owner)
    assert not child.asked


def test_what_a_dead_process_had_started_is_ended(begin):
    child = begin(WITH_A_CHILD)
    started(child)
    left = psutil.Process(int(child.process.stdout.readline()))
    child.process.kill()
    child.watch(lambda: None)
    left.wait(10)


def test_a_run_is_asked_to_stop_as_soon_as_it_has_started(begin):
    child, asked = begin(), []

    def run():
        time.sleep(0.5)  # Ctrl-C comes first
        store = started(child)
        while not asked and child.process.poll() is None:
            if store.get_run(child.run_id).status is RunStatus.STOPPING:
                asked.append(True)
        child.process.terminate()

    thread = threading.Thread(target=run)
    thread.start()
    child.stop()
    thread.join()
    assert asked
    assert child.asked


def test_a_database_that_is_away_does_not_end_the_watch(begin):
    child, calls = begin(), []
    started(child)

    def show():
        calls.append(True)
        if len(calls) == 1:
            raise StoreUnreachableError("away")
        child.process.kill()

    assert child.watch(show, every_seconds=0.01) is RunStatus.INTERRUPTED
    assert len(calls) > 1
