"""A run on a federation across its restarts: every one is a Flower run of its own."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rich.console import Console

from orchestrator.cli.output import saying
from orchestrator.cli.remote import Remote
from orchestrator.config import RunConfig
from orchestrator.home import Home
from orchestrator.restarts import AWAY_SECONDS, Ending, Restarts
from orchestrator.store.base import RunStatus
from strategies.errors import RefusedError, TransportError

if TYPE_CHECKING:
    from orchestrator.deployment.control import Control

_LOOK_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class RemoteRun:
    """A run on the SuperLink of ``control``."""

    control: Control
    config: RunConfig
    home: Home
    console: Console

    def carried(self, run_id: str | None, restarts: int) -> Ending:
        """Submit the run file, or have ``run_id`` continued; how it ended after its restarts.

        Raises: TransportError if nobody takes the run at first, or the SuperLink is lost before
            the run is found in our database.  StoreError if there are to be restarts and no
            database to put them in.
        """
        carrying = None
        if restarts:
            say = saying(self.console)
            carrying = Restarts(store=self.home.store(), limit=restarts, say=say)
        first = self._submitted(run_id)
        if carrying is None:
            return _followed(first)
        fresh = [first]

        def attempt(run_id: str | None) -> Ending:
            if fresh or run_id is None:
                return _followed(fresh.pop())
            return self._again(run_id)

        return carrying.carry(attempt, run_id)

    def _submitted(self, run_id: str | None) -> Remote:
        if run_id is None:
            return Remote.submit(self.control, self.config, self.home, self.console)
        return Remote.resume(self.control, run_id, self.home, self.console)

    def _again(self, run_id: str) -> Ending:
        """Another Flower run of the same run, once the SuperLink takes one."""
        try:
            remote = self._resumed(run_id)
        except KeyboardInterrupt:
            return Ending(run_id=run_id, status=RunStatus.INTERRUPTED, asked=True)
        if remote is None:
            return Ending(run_id=run_id, status=RunStatus.INTERRUPTED, asked=False)
        return _followed(remote)

    def _resumed(self, run_id: str) -> Remote | None:
        """Waits for the SuperLink; None if it stays away.

        Raises: RefusedError.
        """
        deadline = time.monotonic() + AWAY_SECONDS
        while True:
            try:
                return self._submitted(run_id)
            except RefusedError:
                raise
            except TransportError as error:
                if time.monotonic() > deadline:
                    saying(self.console)(f"{error}; waited {AWAY_SECONDS:g} s")
                    return None
                time.sleep(_LOOK_SECONDS)


def _followed(remote: Remote) -> Ending:
    status = remote.follow()
    found = remote.run_id if remote.store else None
    return Ending(run_id=found, status=status, asked=remote.asked)
