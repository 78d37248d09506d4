"""What no run needs any more: looked for first, so that it can be shown, and then removed."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypedDict

from orchestrator.checkpoint import blobs_of
from orchestrator.home import Home
from orchestrator.retention import Holds
from orchestrator.sections import Checkpoints
from orchestrator.store.base import ALIVE, RunRecord, RunStatus, RunStore
from strategies.errors import RunNotFoundError

_DAY: Final = 86_400.0  # s
BLOBS, RESTS, STATES, CACHE = "blobs", "temporary files", "client states", "cache"


class Removal(TypedDict):
    """Things of one kind that no run needs."""

    what: str
    count: int
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Garbage:
    """``paths`` by kind can go; ``drops`` are the holds (run, checkpoint) that nobody needs.

    ``left`` is what looks like garbage and is left alone, each with the reason.
    """

    paths: Mapping[str, tuple[Path, ...]]
    drops: tuple[tuple[str, str], ...] = ()
    left: tuple[str, ...] = ()

    def removals(self) -> list[Removal]:
        """What it comes to, by kind."""
        return [
            Removal(what=what, count=len(found), bytes=sum(_size(path) for path in found))
            for what, found in self.paths.items()
        ]

    def remove(self, home: Home) -> None:
        """Remove it; holds last, so that what a crash leaves is found again.

        Raises: OSError.
        """
        for path in (path for found in self.paths.values() for path in found):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        for run_id, checkpoint in self.drops:
            (Holds(home.blobs()).folder / run_id / checkpoint).unlink(missing_ok=True)


def look(home: Home) -> Garbage:
    """What no run of this data directory needs.

    To be called, and what it finds removed, while ``home.blobs().sweeping``.
    """
    store, holds = home.store(), Holds(home.blobs())
    runs = {run.run_id: run for run in store.list_runs()}
    wanted = {run.run_id: _wanted(run, store, holds) for run in runs.values()}
    drops = tuple(
        (run_id, checkpoint)
        for run_id in holds.runs()
        if run_id in runs
        for checkpoint in sorted(holds.of(run_id) - wanted[run_id])
    )
    needed = holds.needed(drops).union(
        *(blobs_of(c, holds.blobs) for found in wanted.values() for c in found)
    )
    return Garbage(
        paths={
            BLOBS: tuple(sorted(p for p in holds.blobs.stored() if p.name not in needed)),
            RESTS: tuple(sorted(_rests(home, runs))),
            STATES: tuple(sorted(_states(home, runs))),
        },
        drops=drops,
        left=tuple(_strangers(home, runs)),
    )


def cache_of(home: Home) -> Garbage:
    """Tokenised data and pretext-trained bases; what is needed again is made again."""
    return Garbage(paths={CACHE: tuple(sorted(home.cache_folder.glob("*")))})


def idle_states(work: Path, idle_days: float) -> Garbage:
    """States a client machine keeps for runs in which it has not been at work for so long.

    It does not know how a run has ended.  A run that goes on after its state was removed finds the
    client with an empty memory.
    """
    latest = time.time() - idle_days * _DAY
    folders = sorted(path for path in (work / "clients").glob("*") if path.is_dir())
    idle = [folder for folder in folders if _last_written(folder) < latest]
    busy = len(folders) - len(idle)
    left = (f"{busy} runs with work in the last {idle_days:g} days",) if busy else ()
    return Garbage(paths={STATES: tuple(idle)}, left=left)


def delete(run_id: str, home: Home) -> str:
    """Forget a run: its rows first, then all of its files; the whole id.

    A run whose rows are gone already, as after a crash in here, is known by its files.
    Raises: RunNotFoundError; StaleRunStatusError while an orchestrator leads it.
    """
    store, holds = home.store(), Holds(home.blobs())
    try:
        run_id = store.get_run(run_id).run_id
    except RunNotFoundError:
        if not any(folder.is_dir() for folder in _folders(home, run_id)):
            raise
    store.delete_run(run_id)
    with home.blobs().sweeping(patience_seconds=60.0) as alone:
        if alone:
            holds.drop(run_id, holds.of(run_id))
    for folder in _folders(home, run_id):
        shutil.rmtree(folder, ignore_errors=True)
    return run_id


def _folders(home: Home, run_id: str) -> tuple[Path, ...]:
    held = Holds(home.blobs()).folder / run_id
    return home.run_folder(run_id), home.client_folder / run_id, held


def _wanted(run: RunRecord, store: RunStore, holds: Holds) -> frozenset[str]:
    """The checkpoints a run needs: of a completed one the last, which is what it has come to."""
    keep = dict(run.config.get("checkpoints") or {}).get("keep", Checkpoints().keep)
    limit = 1 if run.status is RunStatus.COMPLETED else int(keep)
    newest = frozenset(store.checkpoints(run.run_id, limit=limit))
    return newest | holds.of(run.run_id) if run.status in ALIVE else newest


def _rests(home: Home, runs: Mapping[str, RunRecord]) -> Iterator[Path]:
    """What killed processes left half-written; of runs under way it may be work."""
    yield from home.blobs().rests()
    yield from Holds(home.blobs()).folder.glob("*/.*")
    yield from home.folder.glob(".writable-*")
    for run in runs.values():
        if run.status not in ALIVE:
            yield from home.run_folder(run.run_id).rglob(".*.tmp")
        if run.status not in (*ALIVE, RunStatus.COMPLETED):  # whose states go whole
            yield from (home.client_folder / run.run_id).rglob("*.tmp")


def _states(home: Home, runs: Mapping[str, RunRecord]) -> Iterator[Path]:
    """What simulated clients kept for runs that will not go on."""
    for run in runs.values():
        folder = home.client_folder / run.run_id
        if run.status is RunStatus.COMPLETED and folder.is_dir():
            yield folder


def _strangers(home: Home, runs: Mapping[str, RunRecord]) -> Iterator[str]:
    """Files of runs that this database does not know; another one may."""
    held = Holds(home.blobs()).folder
    for folder in (home.folder / "runs", home.client_folder, held):
        for path in sorted(folder.glob("*")):
            if path.is_dir() and path.name not in runs:
                yield (
                    f"{path}: of a run that is not in this database; "
                    f"`perennial delete {path.name}` if it is in no other"
                )


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else (path,)
    return sum(file.stat().st_size for file in files if file.is_file())


def _last_written(folder: Path) -> float:
    return max((p.stat().st_mtime for p in (folder, *folder.rglob("*"))), default=0.0)
