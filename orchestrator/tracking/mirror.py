"""Copies committed steps from the run database to a tracking server, in a thread of its own."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from orchestrator.store.base import RoundRecord, RunRecord, RunStore, ScoreRecord
from orchestrator.tracking.points import matrix_of, metrics_of
from orchestrator.tracking.server import Point, Tracker
from strategies.errors import StoreError

log = logging.getLogger(__name__)

BEHIND: Final = "tracking-behind"
CAUGHT_UP: Final = "tracking-caught-up"
_LONGEST_WAIT_SECONDS: Final = 60.0
_LONGEST_REASON: Final = 300  # characters
_STEPS_AT_ONCE: Final = 10


@dataclass(slots=True, kw_only=True)
class Mirror:
    """One run's copy at ``tracker``.

    Nothing is queued: what is still to be copied is in the run database, after the step that the
    tracker has.  So a tracker that is away costs no memory, and whoever mirrors the run next, with
    a resumed run or by hand, goes on from there.
    """

    run_id: str
    store: RunStore
    tracker: Tracker
    report: Path
    look_seconds: float = 2.0
    behind: str = ""  # why the last attempt failed
    _known: int | None = None  # the newest step the tracker has; None before it was asked
    _read: int = -1  # the newest step whose scores were taken up
    _scores: list[ScoreRecord] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to copy, and go on until ``close``."""
        self._thread = threading.Thread(target=self._run, name="tracking", daemon=True)
        self._thread.start()

    def close(self, seconds: float) -> None:
        """Copy what is left, with the files, for at most ``seconds``; after a failure for a sixth.

        What could not be copied is put on record, with what to do about it.
        """
        self._stop.set()
        if self._thread:
            self._thread.join(seconds / 6 if self.behind else seconds)
            if self._thread.is_alive():
                self.behind = self.behind or f"it took more than {seconds:g} s"
        if self.behind:
            self._note(BEHIND, f"{self.behind}; `perennial mirror {self.run_id}` catches up")

    def finish(self) -> None:
        """Copy everything that is committed, and the run's adapter, report and status.

        Raises: whatever the tracker raises.
        """
        self.catch_up()
        run = self.store.get_run(self.run_id)
        files = {"report": self.report}
        if run.adapter_path:
            files["adapter"] = Path(run.adapter_path)
        self.tracker.end(run, {name: path for name, path in files.items() if path.exists()})

    def catch_up(self) -> None:
        """Copy every committed step that the tracker lacks.

        Raises: whatever the tracker raises; the next call goes on after the last step it took.
        """
        run = self.store.get_run(self.run_id)
        if self._known is None:
            self._known = self.tracker.begin(run)
        while rounds := self.store.tallies().rounds_after(self.run_id, self._read, _STEPS_AT_ONCE):
            scores, newest = list(self._scores), rounds[-1].step_index
            points = [point for record in rounds for point in _points(run, record, scores)]
            if lacking := [point for point in points if point.step > self._known]:
                self.tracker.log(lacking, newest)
            self._scores, self._read, self._known = scores, newest, max(newest, self._known)

    def _run(self) -> None:
        wait, stopping = self.look_seconds, False
        while not stopping:
            stopping = self._stop.wait(wait)
            try:
                self.finish() if stopping else self.catch_up()
            except StoreError as error:
                log.warning("run %s is not mirrored for now: %s", self.run_id, error)
            except Exception as error:  # noqa: BLE001 - whatever the server does, the run goes on
                wait = min(2 * wait, _LONGEST_WAIT_SECONDS)
                self._failed(error)
            else:
                wait = self.look_seconds
                self._succeeded()

    def _failed(self, error: Exception) -> None:
        lines = str(error).splitlines() or [""]
        reason = f"{type(error).__name__}: {lines[0]}"[:_LONGEST_REASON]
        if not self.behind:
            self._note(BEHIND, f"{reason}; what is committed is mirrored when it answers")
        self.behind = reason

    def _succeeded(self) -> None:
        if self.behind:
            self._note(CAUGHT_UP, "the tracking server has every committed step")
        self.behind = ""

    def _note(self, kind: str, message: str) -> None:
        try:
            self.store.append_event(self.run_id, kind, message)
        except StoreError as error:
            log.warning("run %s: %s (not on record: %s)", self.run_id, message, error)


def _points(run: RunRecord, record: RoundRecord, scores: list[ScoreRecord]) -> Iterator[Point]:
    """The numbers of a step; adds its scores to ``scores``, those of all steps before it."""
    scores += record.scores
    values = metrics_of(record)
    if record.kind == "evaluate" and run.task_names:
        values |= matrix_of(run, scores)
    for name, value in sorted(values.items()):
        yield Point(name, value, record.step_index, record.committed_at)
