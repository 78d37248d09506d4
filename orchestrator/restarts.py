"""``--restarts``: whoever started a run resumes it when it dies."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, TypeVar

from orchestrator.deployment.backoff import Backoff
from orchestrator.stopping import is_led, settled
from orchestrator.store.base import RunStatus, RunStore
from strategies.errors import StoreUnreachableError

T = TypeVar("T")
RESTARTED: Final = "restarted"
# A database or a SuperLink that is away is waited for so long before a restart is given up.
AWAY_SECONDS: Final = 300.0
_LOOK_SECONDS: Final = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How an attempt to carry a run on ended.

    ``run_id`` is None for a run that is not in our database.  ``asked`` says whether whoever
    started the attempt wanted it to end.
    """

    run_id: str | None
    status: RunStatus
    asked: bool


Attempt = Callable[[str | None], Ending]
"""Begins a new run if there is none yet, or carries on the run of that id, until it ends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Restarts:
    """Resumes a run up to ``limit`` times, after ever longer waits, each time on its record.

    Resumed is a run that was interrupted without anybody having asked for it: its process was
    killed or crashed, its server was ended, its database or its SuperLink was away for too long.
    A run that failed is left as it is: its configuration, its data and what its clients answer
    would be the same again.  So is one that was asked to stop (Ctrl-C, SIGTERM, or by another
    command), and one that another orchestrator carries on.
    """

    store: RunStore
    limit: int
    say: Callable[[str], None]
    backoff: Backoff = field(default_factory=Backoff)
    sleep: Callable[[float], None] = time.sleep

    def carry(self, attempt: Attempt, run_id: str | None) -> Ending:
        """Make attempts until the run has ended for good; how the last one ended."""
        ending, asked = self._made(attempt, run_id)
        for number in range(1, self.limit + 1):
            run_id = ending.run_id
            if ending.status is not RunStatus.INTERRUPTED or asked:
                break
            if run_id is None:
                self.say("not restarted: the server keeps the run in another database than ours")
                break
            try:
                if not self._prepared(number, run_id):
                    break
            except KeyboardInterrupt:
                break
            ending, asked = self._made(attempt, run_id)
        return ending

    def _made(self, attempt: Attempt, run_id: str | None) -> tuple[Ending, bool]:
        """An attempt, and whether its end was asked for by anybody."""
        before = len(self.store.events(run_id)) if run_id else 0
        try:
            ending = attempt(run_id)
        except StoreUnreachableError as error:
            if run_id is None or not self.limit:
                raise
            away, lost = str(error), run_id  # its process is gone, and what became of it unknown
            status = self._patiently(lambda: settled(lost, self.store, away))
            ending = Ending(run_id=run_id, status=status, asked=False)
        if ending.asked or ending.run_id is None or not self.limit:
            return ending, ending.asked
        found = ending.run_id
        events = self._patiently(lambda: self.store.events(found))[before:]
        return ending, any(x.data.get("status") == RunStatus.STOPPING for x in events)

    def _prepared(self, number: int, run_id: str) -> bool:
        """Wait, and put the restart on record; False if somebody else has the run."""
        reason = self._patiently(lambda: self.store.get_run(run_id)).reason
        seconds = self.backoff.delay_seconds(number)
        self.say(f"restart {number} of {self.limit} in {seconds:g} s: {reason}")
        self.sleep(seconds)
        if not self._is_free(run_id):
            self.say("not restarted: another orchestrator carries the run on")
            return False
        message = f"restart {number} of {self.limit}: {reason}"
        data = {"attempt": number, "of": self.limit, "reason": reason, "waited_seconds": seconds}
        self._patiently(lambda: self.store.append_event(run_id, RESTARTED, message, data))
        return True

    def _is_free(self, run_id: str) -> bool:
        """Wait for the lease of whoever leads the run to run out; False if it is renewed."""
        first = record = self._patiently(lambda: self.store.get_run(run_id))
        while is_led(record):
            if record.lease_expires_at != first.lease_expires_at:
                return False
            self.sleep(_LOOK_SECONDS)
            record = self._patiently(lambda: self.store.get_run(run_id))
        reason = "its orchestrator is gone"
        status = self._patiently(lambda: settled(run_id, self.store, reason))
        return status is RunStatus.INTERRUPTED

    def _patiently(self, ask: Callable[[], T]) -> T:
        """What ``ask`` says once the database answers.

        Raises: StoreUnreachableError if it stays away.
        """
        deadline = time.monotonic() + AWAY_SECONDS
        while True:
            try:
                return ask()
            except StoreUnreachableError:
                if time.monotonic() > deadline:
                    raise
                self.sleep(_LOOK_SECONDS)
