"""Whose lease it is: a dead process of this machine holds none, anybody else's is respected."""

from __future__ import annotations

import subprocess
import sys
from datetime import timedelta

import pytest

from orchestrator.conduct import reclaim, submit
from orchestrator.owners import described, is_gone, new_owner
from orchestrator.progress import LEASE, Progress
from orchestrator.store.base import RunStatus
from strategies.errors import ConfigError
from tests.conftest import tiny_config

_NAME_AND_STAY = (
    "from orchestrator.owners import new_owner; print(new_owner(), flush=True); input()"
)


@pytest.fixture
def child():
    with subprocess.Popen(
        [sys.executable, "-c", _NAME_AND_STAY],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield process, process.stdout.readline().strip()
        process.kill()


def changed(owner: str, place: int, value: str) -> str:
    parts = owner.split("/")
    return "/".join([*parts[:place], value, *parts[place + 1 :]])


@pytest.fixture
def running(home):
    """A run in status running, to be leased."""
    run_id, store = submit(tiny_config(), home), home.store()
    store.transition(run_id, RunStatus.RUNNING, expected=[RunStatus.CREATED], reason="started")
    return run_id, store


def test_an_owner_is_gone_once_its_process_is_killed_even_before_it_is_reaped(child):
    process, owner = child
    assert not is_gone(owner)
    process.kill()
    process.stdout.read()  # it has ended, and nobody has asked how
    for _ in range(10_000):
        if is_gone(owner):
            break
    assert is_gone(owner)
    process.wait()
    assert is_gone(owner)


def test_what_cannot_be_known_here_counts_as_alive():
    mine = new_owner()
    assert not is_gone(mine)
    assert not is_gone(changed(changed(mine, 3, "another"), 1, "999999999"))
    assert not is_gone("0" * 32)
    assert is_gone(changed(mine, 1, "999999999"))
    assert is_gone(changed(mine, 2, "1"))  # the pid was given to another process


def test_no_two_owners_are_alike_and_a_database_has_room_for_their_names():
    assert len({new_owner() for _ in range(100)}) == 100
    assert len(new_owner()) <= 64
    assert described(new_owner()).startswith("process ")
    assert described("dead") == "dead"


def test_a_run_whose_orchestrator_was_killed_here_is_continued_at_once(running, child):
    run_id, store = running
    process, owner = child
    assert store.renew_lease(run_id, owner, LEASE)
    with pytest.raises(ConfigError, match=f"held by process {process.pid} on "):
        reclaim(run_id, store)
    process.kill()
    process.wait()
    assert reclaim(run_id, store).status is RunStatus.INTERRUPTED
    mine, interrupted = Progress(run_id, store).owner, [RunStatus.INTERRUPTED]
    store.transition(run_id, RunStatus.RUNNING, expected=interrupted, reason="started", owner=mine)
    assert store.get_run(run_id).lease_owner == mine


def test_a_lease_from_another_machine_is_waited_for(running):
    run_id, store = running
    elsewhere = changed(changed(new_owner(), 3, "another"), 1, "999999999")
    assert store.renew_lease(run_id, elsewhere, timedelta(seconds=60))
    with pytest.raises(ConfigError, match="whose lease lasts until"):
        reclaim(run_id, store)


def test_a_failed_run_is_taken_up_again_and_says_of_what_it_had_failed(running):
    run_id, store = running
    store.transition(
        run_id, RunStatus.FAILED, expected=[RunStatus.RUNNING], reason="the disk was full"
    )
    assert reclaim(run_id, store).status is RunStatus.INTERRUPTED
    assert store.events(run_id)[-1].message.endswith("it had failed: the disk was full")


def test_a_run_that_was_killed_before_it_began_can_be_begun(home):
    run_id = submit(tiny_config(), home)
    assert reclaim(run_id, home.store()).status is RunStatus.CREATED


def test_a_completed_run_is_not_taken_up_again(running):
    run_id, store = running
    store.transition(run_id, RunStatus.COMPLETED, expected=[RunStatus.RUNNING], reason="done")
    with pytest.raises(ConfigError, match="a completed run, expected an interrupted or failed run"):
        reclaim(run_id, store)
