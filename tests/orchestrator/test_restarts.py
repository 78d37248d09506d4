"""Which endings of a run are followed by a restart, and what is put on record of it."""

from __future__ import annotations

import time
from datetime import timedelta

import pytest

from orchestrator.conduct import submit
from orchestrator.restarts import RESTARTED, Ending, Restarts
from orchestrator.store.base import RunStatus
from strategies.errors import StoreUnreachableError
from tests.conftest import tiny_config


class Script:
    """Attempts at one run that end as told, one after the other."""

    def __init__(self, home, *endings):
        self.store, self.endings, self.made = home.store(), list(endings), 0
        self.run_id = submit(tiny_config(), home)
        self.said, self.slept = [], []

    def __call__(self, run_id):
        self.made += 1
        startable = (RunStatus.CREATED, RunStatus.INTERRUPTED)
        self.store.transition(self.run_id, RunStatus.RUNNING, expected=startable, reason="started")
        ending = self.endings.pop(0)
        return ending(self) if callable(ending) else self.end(*ending)

    def end(self, status, reason, *, asked=False):
        alive = (RunStatus.RUNNING, RunStatus.STOPPING)
        self.store.transition(self.run_id, status, expected=alive, reason=reason)
        return Ending(run_id=self.run_id, status=status, asked=asked)

    def carried(self, limit, *, run_id="known", sleep=None):
        def slept(seconds):
            self.slept.append(seconds)
            if sleep:
                sleep(self)

        restarts = Restarts(store=self.store, limit=limit, say=self.said.append, sleep=slept)
        return restarts.carry(self, self.run_id if run_id == "known" else run_id)

    @property
    def events(self):
        return [event for event in self.store.events(self.run_id) if event.kind == RESTARTED]


DIED = (RunStatus.INTERRUPTED, "its process ended with code -9")
DONE = (RunStatus.COMPLETED, "all steps done")


def test_a_run_that_dies_is_restarted_after_growing_waits_and_every_restart_is_on_record(home):
    script = Script(home, DIED, DIED, DONE)
    assert script.carried(5).status is RunStatus.COMPLETED
    assert script.slept == [1.0, 2.0]
    assert [event.message for event in script.events] == [
        "restart 1 of 5: its process ended with code -9",
        "restart 2 of 5: its process ended with code -9",
    ]
    assert script.events[1].data == {
        "attempt": 2, "of": 5, "reason": DIED[1], "waited_seconds": 2.0,
    }  # fmt: skip
    kinds = [event.kind for event in script.store.events(script.run_id)]
    assert kinds == ["status"] * 3 + [RESTARTED] + ["status"] * 2 + [RESTARTED] + ["status"] * 2


def test_restarts_that_are_used_up_leave_an_interrupted_run(home):
    script = Script(home, DIED, DIED, DIED)
    assert script.carried(2).status is RunStatus.INTERRUPTED
    assert (script.made, len(script.events)) == (3, 2)


def test_without_restarts_there_is_one_attempt(home):
    script = Script(home, DIED)
    assert script.carried(0).status is RunStatus.INTERRUPTED
    assert (script.made, script.events, script.said) == (1, [], [])


def test_a_run_that_failed_is_left_as_it_is(home):
    script = Script(home, (RunStatus.FAILED, "2 of 3 replies"))
    assert script.carried(3).status is RunStatus.FAILED
    assert (script.made, script.events, script.said, script.slept) == (1, [], [], [])


def test_who_pressed_ctrl_c_gets_no_restart(home):
    script = Script(home, lambda s: s.end(*DIED, asked=True))
    assert script.carried(3).status is RunStatus.INTERRUPTED
    assert (script.made, script.events) == (1, [])


def asked_by_another_command(script):
    running = (RunStatus.RUNNING,)
    script.store.transition(
        script.run_id, RunStatus.STOPPING, expected=running, reason="another terminal"
    )
    return script.end(RunStatus.INTERRUPTED, "asked to stop")


def test_a_run_that_another_command_stopped_is_not_restarted(home):
    script = Script(home, DIED, asked_by_another_command)
    assert script.carried(3).status is RunStatus.INTERRUPTED
    assert (script.made, len(script.events)) == (2, 1)


def test_a_stop_before_this_attempt_is_no_reason_against_a_restart(home):
    script = Script(home, asked_by_another_command)
    script.carried(0)
    script.endings = [DIED, DONE]
    assert script.carried(1).status is RunStatus.COMPLETED


def test_ctrl_c_while_it_waits_ends_the_restarts(home):
    def pressed(_):
        raise KeyboardInterrupt

    script = Script(home, DIED)
    assert script.carried(3, sleep=pressed).status is RunStatus.INTERRUPTED
    assert (script.made, script.events) == (1, [])


def led_elsewhere(script, seconds):
    """What is left of an attempt that found another machine's orchestrator at work."""
    script.store.renew_lease(script.run_id, "other", timedelta(seconds=seconds))
    return Ending(run_id=script.run_id, status=RunStatus.INTERRUPTED, asked=False)


def test_a_lease_is_waited_for_whose_holder_is_not_to_be_seen(home):
    script = Script(home, lambda s: led_elsewhere(s, 0.2), DONE)
    began = time.monotonic()
    assert script.carried(1, sleep=lambda _: time.sleep(0.05)).status is RunStatus.COMPLETED
    assert time.monotonic() - began > 0.2
    reasons = [event.message for event in script.store.events(script.run_id)]
    assert "interrupted: its orchestrator is gone" in reasons


def test_a_run_that_another_orchestrator_carries_on_is_left_to_it(home):
    def renews(script):
        script.store.renew_lease(script.run_id, "other", timedelta(seconds=60))

    script = Script(home, lambda s: led_elsewhere(s, 60))
    assert script.carried(3, sleep=renews).status is RunStatus.INTERRUPTED
    assert (script.made, script.events) == (1, [])
    assert "another orchestrator" in script.said[-1]
    assert script.store.get_run(script.run_id).status is RunStatus.RUNNING


def test_a_database_that_was_away_during_the_run_is_waited_for(home):
    def away(_):
        raise StoreUnreachableError("run database was away for 30 s")

    script = Script(home, away, DONE)
    assert script.carried(1).status is RunStatus.COMPLETED
    assert "away for 30 s" in script.events[0].message


def test_a_database_that_was_away_without_restarts_is_an_error(home):
    def away(_):
        raise StoreUnreachableError("run database was away for 30 s")

    with pytest.raises(StoreUnreachableError):
        Script(home, away).carried(0)


def test_a_run_in_another_database_cannot_be_restarted_and_says_so(home):
    def elsewhere(script):
        script.end(*DIED)
        return Ending(run_id=None, status=RunStatus.INTERRUPTED, asked=False)

    script = Script(home, elsewhere)
    assert script.carried(3, run_id=None).status is RunStatus.INTERRUPTED
    assert "another database" in script.said[-1]
