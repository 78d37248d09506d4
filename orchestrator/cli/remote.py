"""``perennial run --on``: a run on a real federation, followed from here."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rich.console import Console

from orchestrator.cli.live import LiveView
from orchestrator.conduct import FLOWER_RUN, INTERRUPTED
from orchestrator.config import RunConfig
from orchestrator.home import Home
from orchestrator.stopping import GRACE_SECONDS, ask_to_stop, is_led, settled
from orchestrator.store.base import ALIVE, LEASE, RunStatus, RunStore
from strategies.errors import StoreError, StoreUnreachableError, TransportError

if TYPE_CHECKING:
    from orchestrator.deployment.control import Control, FlowerStatus

_LOOK_SECONDS: Final = 0.25
_ASK_SECONDS: Final = 3.0  # of Flower, which logs every question
_FINISHED: Final = "finished"


@dataclass(slots=True)
class Remote:
    """A run on a SuperLink; ``run_id`` is known once it is found in our own run database.

    It is found there when the server uses the same one (``PERENNIAL_HOME`` and
    ``PERENNIAL_DATABASE``); otherwise all we know is what Flower says.
    """

    control: Control
    flower_run: int
    console: Console
    store: RunStore | None
    run_id: str | None = None
    asked: bool = False  # to stop, from here or by Flower's hand

    @classmethod
    def submit(cls, control: Control, config: RunConfig, home: Home, console: Console) -> Remote:
        """Send a run file's content; the server makes the run."""
        text = json.dumps(config.model_dump(mode="json"))
        return cls(control, control.submit({"config": text}), console, _store(home))

    @classmethod
    def resume(cls, control: Control, run_id: str, home: Home, console: Console) -> Remote:
        """Have a run of the server's database continued, as a new Flower run."""
        store, number = _store(home), control.submit({"run-id": run_id})
        if store:
            message = f"as Flower run {number} on {control.connection.address}"
            store.append_event(run_id, "continued", message, {FLOWER_RUN: str(number)})
        return cls(control, number, console, store, run_id)

    def follow(self) -> RunStatus:
        """Show the run until it has ended; on Ctrl-C or SIGTERM have it stopped.

        Raises: TransportError if the SuperLink is lost.
        """
        address = self.control.connection.address
        self.console.print(f"submitted to {address} as Flower run {self.flower_run}")
        try:
            status = _flowers("submitted") if self.run_id else self._until_found()
            if self.run_id and self.store:
                status = self._live(self.run_id, self.store)
        except KeyboardInterrupt:
            status = self._stop()
        self.asked = self.asked or status.ended == "stopped"
        return self._outcome(status)

    def _until_found(self) -> FlowerStatus:
        """Flower's word, a line per change, until the run is in our database or has ended."""
        shown = ""
        while True:
            status = self.control.status(self.flower_run)
            self.run_id = self.run_id or self._find()
            if self.run_id or status.status == _FINISHED:
                return status
            if status.status != shown:
                shown = status.status
                self.console.print(f"{shown} on {self.control.connection.address}")
            time.sleep(1.0)

    def _find(self) -> str | None:
        if self.store is None:
            return None
        wanted = str(self.flower_run)
        for record in self.store.list_runs(limit=20):
            if record.environment.get(FLOWER_RUN) == wanted:
                return record.run_id
        return None

    def _live(self, run_id: str, store: RunStore) -> FlowerStatus:
        """Show the run's own progress until it, or its ServerApp, has ended."""
        begun, asked = False, time.monotonic()
        status = self._ask(run_id, store, _flowers("submitted"))
        with LiveView(run_id, store, self.console) as view:
            while status.status != _FINISHED:
                with suppress(StoreUnreachableError):  # the ServerApp's own patience decides
                    view.refresh()
                    alive = store.get_run(run_id).status in ALIVE
                    if begun and not alive:
                        status = self._ask(run_id, store, status)
                        break
                    begun = begun or alive
                if time.monotonic() - asked > _ASK_SECONDS:
                    status, asked = self._ask(run_id, store, status), time.monotonic()
                time.sleep(_LOOK_SECONDS)
            view.refresh()
        return status

    def _ask(self, run_id: str, store: RunStore, last: FlowerStatus) -> FlowerStatus:
        """Flower's word; without it, ``last`` for as long as the run's lease is renewed."""
        try:
            return self.control.status(self.flower_run)
        except TransportError as error:
            if is_led(store.get_run(run_id)):
                return last
            return _flowers(_FINISHED, ended="lost", details=str(error))

    def _stop(self) -> FlowerStatus:
        """At the run's next safe point if we share its database, else by Flower's hand."""
        self.asked = True
        self.console.print("stopping the run")
        if not (self.run_id and self.store and ask_to_stop(self.run_id, self.store)):
            self.control.stop(self.flower_run)
        deadline = time.monotonic() + GRACE_SECONDS
        while (status := self.control.status(self.flower_run)).status != _FINISHED:
            if time.monotonic() > deadline:
                self.control.stop(self.flower_run)
                break
            time.sleep(1.0)
        return status

    def _outcome(self, flower: FlowerStatus) -> RunStatus:
        if not (self.run_id and self.store):
            return _by_flower(flower, self.console)
        status = self._released(self.run_id, self.store)
        if status not in ALIVE:
            return status
        reason = f"its ServerApp is gone: {flower.details or flower.ended}"
        return settled(self.run_id, self.store, reason)

    def _released(self, run_id: str, store: RunStore) -> RunStatus:
        """The run's status once it has ended or nobody holds its lease.

        A ServerApp that is gone for Flower may still be about to say so itself, and only a run
        without a lease can be resumed.  One that is led for longer is led by another.
        """
        deadline = time.monotonic() + LEASE.total_seconds()
        while (run := store.get_run(run_id)).status in ALIVE and is_led(run):
            if time.monotonic() > deadline:
                break
            time.sleep(_LOOK_SECONDS)
        return run.status


def _flowers(status: str, *, ended: str = "", details: str = "") -> FlowerStatus:
    from orchestrator.deployment.control import FlowerStatus

    return FlowerStatus(status=status, ended=ended, details=details)


def _by_flower(flower: FlowerStatus, console: Console) -> RunStatus:
    details = f": {flower.details}" if flower.details else ""
    console.print(f"{flower.ended or flower.status}{details}", highlight=False, soft_wrap=True)
    if flower.ended == "completed":
        return RunStatus.COMPLETED
    stopped = flower.ended == "stopped" or f"{INTERRUPTED}: " in flower.details
    return RunStatus.INTERRUPTED if stopped else RunStatus.FAILED


def _store(home: Home) -> RunStore | None:
    """Our own run database; None where there is none to open."""
    try:
        return home.store()
    except StoreError:
        return None
