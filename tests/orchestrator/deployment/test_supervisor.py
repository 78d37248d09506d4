"""Restarts by a clock of the test's own, and processes of its own making."""

from __future__ import annotations

import sys
import time

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.deployment.backoff import Backoff
from orchestrator.deployment.processes import Children, Program, Running, wait_until
from orchestrator.deployment.supervisor import Supervised
from strategies.errors import RefusedError, TransportError
from tests.orchestrator.deployment.actors import Actor


class Stage:
    """A supervised process whose every start is an actor."""

    def __init__(self, *, ready=True, verdict=None, backoff=None):
        self.actors = []
        self.ready = ready
        self.refuses = None
        self.supervised = Supervised(
            name="the actor",
            start=self.start,
            is_ready=lambda: self.ready,
            verdict=lambda code, lines: verdict if verdict and verdict in lines else None,
            passing=lambda lines: "taken still" if "taken" in lines else None,
            backoff=backoff or Backoff(),
        )

    def start(self):
        if self.refuses:
            raise self.refuses
        self.actors.append(Actor())
        return self.actors[-1]

    def dies(self, now, *lines):
        self.actors[-1].lines.extend(lines)
        self.actors[-1].code = 3
        self.supervised.tick(now)


def test_waits_double_up_to_the_longest():
    backoff = Backoff(first_seconds=1, longest_seconds=10)
    assert [backoff.delay_seconds(n) for n in range(1, 7)] == [1, 2, 4, 8, 10, 10]


@given(failures=st.integers(1, 10**6))
def test_waits_never_shrink_nor_pass_the_longest(failures):
    backoff = Backoff()
    now, after = backoff.delay_seconds(failures), backoff.delay_seconds(failures + 1)
    assert 0 < now <= after <= backoff.longest_seconds


def test_a_healthy_minute_is_forgotten_by_nobody_but_the_count():
    backoff = Backoff()
    assert backoff.failures_after(5, 59.9) == 6
    assert backoff.failures_after(5, 60.0) == 1


def test_a_dead_process_is_started_again_after_its_wait_and_not_before():
    stage = Stage()
    stage.supervised.tick(0.0)
    stage.dies(10.0)
    assert stage.supervised.waits(10.0) == 1.0
    stage.supervised.tick(10.9)
    assert len(stage.actors) == 1
    stage.supervised.tick(11.0)
    assert len(stage.actors) == 2
    stage.dies(12.0)
    assert stage.supervised.waits(12.0) == 2.0
    assert stage.supervised.reason == "the actor ended with code 3"


def test_after_a_healthy_minute_the_wait_is_the_first_again():
    stage = Stage()
    now = 0.0
    for _ in range(4):
        stage.supervised.tick(now)
        stage.dies(now + 1)
        now = stage.supervised.restart_at
    assert stage.supervised.waits(stage.supervised.restart_at - 8.0) == 8.0
    stage.supervised.tick(now)
    stage.dies(now + 60)
    assert stage.supervised.waits(now + 60) == 1.0


def test_a_reason_that_will_not_go_away_ends_it_at_once():
    stage = Stage(verdict="bad key")
    stage.supervised.tick(0.0)
    with pytest.raises(RefusedError, match="bad key"):
        stage.dies(1.0, "hello", "bad key")


def test_a_reason_that_will_go_away_is_waited_out():
    stage = Stage(ready=False)
    now = 0.0
    for _ in range(12):
        stage.supervised.tick(now)
        stage.dies(now + 1, "taken")
        assert stage.supervised.reason == "taken still"
        now = stage.supervised.restart_at
    assert stage.supervised.stillborn == 0


def test_one_that_is_never_ready_is_given_up_with_its_last_words():
    stage = Stage(ready=False)
    now = 0.0
    for _ in range(4):
        stage.supervised.tick(now)
        stage.dies(now + 1, "no such module")
        now = stage.supervised.restart_at
    stage.supervised.tick(now)
    with pytest.raises(RefusedError, match=r"5 times.*\n  no such module"):
        stage.dies(now + 1, "no such module")
    assert len(stage.actors) == 5


def test_one_that_was_ready_is_never_given_up():
    stage = Stage()
    now = 0.0
    for _ in range(30):
        stage.supervised.tick(now)
        stage.dies(now + 1)
        now = stage.supervised.restart_at
    assert len(stage.actors) == 30


def test_a_start_that_time_may_mend_is_tried_again_and_a_refused_one_is_not():
    stage = Stage()
    stage.refuses = TransportError("nobody answers")
    stage.supervised.tick(0.0)
    assert stage.supervised.reason == "nobody answers"
    stage.supervised.tick(0.5)
    assert stage.supervised.failures == 1
    stage.refuses = RefusedError("wrong authority")
    with pytest.raises(RefusedError, match="wrong authority"):
        stage.supervised.tick(1.0)


def test_one_that_is_restarted_is_ended_and_started_after_the_wait():
    stage = Stage()
    stage.supervised.tick(0.0)
    stage.supervised.restart(100.0, "it hangs", 1.0)
    assert stage.actors[0].ended
    assert (stage.supervised.reason, stage.supervised.waits(100.0)) == ("it hangs", 1.0)
    stage.supervised.tick(101.0)
    assert len(stage.actors) == 2
    assert stage.supervised.stillborn == 0


CHILDREN = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"],
                         start_new_session=True)
print("child", child.pid, flush=True)
time.sleep(600)
"""


def test_ending_a_process_ends_its_children_in_other_sessions_too(tmp_path):
    heard = []
    program = Program(
        name="parent",
        command=[sys.executable, "-c", CHILDREN],
        environment={},
        log_path=tmp_path / "parent.log",
        on_line=heard.append,
    )
    running = Running.start(program)
    assert wait_until(lambda: bool(heard), 30)
    child = psutil.Process(int(heard[0].split()[1]))
    assert running.poll() is None
    assert running.has_descendant("time.sleep(600)")
    assert not running.has_descendant("time.sleep(601)")
    running.end(5)
    assert running.poll() is not None
    assert not running.has_descendant("time.sleep(600)")
    deadline = time.monotonic() + 5
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert (tmp_path / "parent.log").read_text() == f"{heard[0]}\n"


def test_one_that_ignores_sigterm_is_killed(tmp_path):
    code = "import signal as s, time; s.signal(15, s.SIG_IGN); print(1, flush=True); time.sleep(60)"
    heard = []
    running = Running.start(
        Program(
            name="stubborn",
            command=[sys.executable, "-c", code],
            environment={},
            log_path=tmp_path / "log",
            on_line=heard.append,
        )
    )
    assert wait_until(lambda: bool(heard), 30)
    running.end(0.2)
    assert running.poll() == -9


def test_what_a_killed_client_left_behind_is_ended_by_the_next(tmp_path):
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    program = Program(name="p", command=sleep, environment={}, log_path=tmp_path / "log")
    left, other = Running.start(program), Running.start(program)
    Children(tmp_path / "children").note(left)
    with (tmp_path / "children").open("a") as file:
        file.write(f"{other.process.pid} 12.5\n")  # its number was another process's once
    assert Children(tmp_path / "children").end_left_behind(5) == 1
    assert wait_until(lambda: left.poll() is not None, 5)
    assert other.poll() is None
    other.end(5)
    assert Children(tmp_path / "children").end_left_behind(5) == 0
