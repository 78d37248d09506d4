"""Where a run is, in a sentence that is also read aloud."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Place(Protocol):
    """How far a run has come; all but the number of steps may be unknown."""

    @property
    def steps_done(self) -> int: ...
    @property
    def phase(self) -> str | None: ...
    @property
    def task(self) -> int | None: ...
    @property
    def round(self) -> int | None: ...
    @property
    def rounds_in_task(self) -> int | None: ...


def progress_words(status: str, place: Place, tasks: Sequence[str]) -> str:
    """What the run is doing now; for one that has ended, how it ended."""
    if status == "created":
        return "Waiting to begin."
    if status not in ("running", "stopping"):
        return f"This run is {status}."
    stopping = " It was asked to stop." if status == "stopping" else ""
    if place.phase is None or place.task is None:
        return f"Getting ready.{stopping}"
    if place.task < 0:
        return f"Before training: {place.phase}.{stopping}"
    name = f" “{tasks[place.task]}”" if place.task < len(tasks) else ""
    where = f"Task {place.task + 1} of {len(tasks)}{name}"
    if place.phase == "training" and place.round is not None:
        where += f", round {place.round + 1} of {place.rounds_in_task}"
    return f"{where}: {place.phase}.{stopping}"
