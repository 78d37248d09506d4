"""Which checkpoints a run keeps, and how the blobs of the others go without harm to any run.

Blobs are shared: equal content is one file, whichever run, of whichever database, wrote it.  So
every run says beside the blobs which of them it needs, ``blobs/held/<run>/<checkpoint>``, a digest
per line; a blob goes when no run says so any more.  A crash at any point leaves too much, never too
little: a checkpoint is held before it is committed, and let go after the commit that makes it
unneeded.  While somebody stores a state nobody sweeps (``BlobStore.writing``), so that a blob found
there is still there once it is held.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from orchestrator.checkpoint import blobs_of, save_state
from orchestrator.home import Home
from orchestrator.store.base import RunStore
from orchestrator.store.blobs import BlobStore, write_durably
from strategies.errors import StoreError
from strategies.types import GlobalState

log = logging.getLogger(__name__)
_LATELY: Final = 50  # steps back in which a checkpoint is looked for that could not be let go then


@dataclass(frozen=True, slots=True)
class Holds:
    """The blobs every run needs, on file."""

    blobs: BlobStore

    @property
    def folder(self) -> Path:
        """Where the holds lie."""
        return self.blobs.folder / "held"

    def add(self, run_id: str, checkpoint: str) -> None:
        """The run needs ``checkpoint``, which is stored; what it lies in stays.

        Raises: StoreError if that cannot be written.
        """
        path = self.folder / run_id / checkpoint
        if not path.exists():
            needed = sorted(blobs_of(checkpoint, self.blobs))
            write_durably(path, "\n".join(needed).encode())

    def of(self, run_id: str) -> frozenset[str]:
        """The checkpoints that the run holds."""
        return frozenset(path.name for path in (self.folder / run_id).glob("[!.]*"))

    def runs(self) -> tuple[str, ...]:
        """The runs that hold any."""
        return tuple(sorted(path.name for path in self.folder.glob("*")))

    def needed(self, besides: Collection[tuple[str, str]] = ()) -> frozenset[str]:
        """The blobs that any run holds, but for these holds (run, checkpoint)."""
        return frozenset(
            digest
            for path in self.folder.glob("*/[!.]*")
            if (path.parent.name, path.name) not in besides
            for digest in path.read_text().split()
        )

    def drop(self, run_id: str, checkpoints: Collection[str]) -> None:
        """Let go of these, and delete their blobs that nobody else needs.

        To be called while sweeping.  Blobs go first: what a crash leaves is let go the next time.
        Raises: OSError.
        """
        gone = {(run_id, checkpoint) for checkpoint in checkpoints}
        paths = [self.folder / run_id / checkpoint for checkpoint in checkpoints]
        candidates = {digest for path in paths for digest in path.read_text().split()}
        for digest in candidates - self.needed(gone):
            self.blobs.delete(digest)
        for path in paths:
            path.unlink(missing_ok=True)

    def adopt(self, store: RunStore, run_id: str, keep: int) -> None:
        """Hold the newest checkpoints of a run that was begun before there were holds."""
        for checkpoint in store.checkpoints(run_id, limit=keep):
            if self.blobs.has(checkpoint):
                self.add(run_id, checkpoint)


def largest_run_bytes(home: Home) -> int:
    """What the run that takes most keeps in this data directory, and one checkpoint more.

    Its checkpoints, adapters, report and simulated clients' states; 0 before the first run.
    """
    holds = Holds(home.blobs())
    return max((_run_bytes(home, holds, run_id) for run_id in holds.runs()), default=0)


def _run_bytes(home: Home, holds: Holds, run_id: str) -> int:
    kept = [path.read_text().split() for path in (holds.folder / run_id).glob("[!.]*")]
    size = {digest: _size(holds.blobs.path(digest)) for found in kept for digest in found}
    another = max((sum(size[digest] for digest in found) for found in kept), default=0)
    folders = home.run_folder(run_id), home.client_folder / run_id
    files = sum(_size(path) for folder in folders for path in folder.rglob("*"))
    return sum(size.values()) + another + files


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Keeper:
    """Stores the checkpoints of one run and keeps the newest ``keep`` committed ones."""

    run_id: str
    store: RunStore
    blobs: BlobStore
    keep: int

    def begin(self) -> None:
        """Let go of what an orchestrator before left behind: uncommitted, or forgotten since.

        Raises: StoreError if what this run needs cannot be put down.
        """
        holds = Holds(self.blobs)
        with self.blobs.writing():
            if not holds.folder.exists():  # the first run since there are holds
                for run in self.store.list_runs():
                    holds.adopt(self.store, run.run_id, self.keep)
            holds.adopt(self.store, self.run_id, self.keep)
        wanted = self.store.checkpoints(self.run_id, limit=self.keep)
        self._drop(holds, holds.of(self.run_id).difference(wanted))

    def save(self, state: GlobalState) -> str:
        """Store ``state`` durably and hold it; its digest, to be committed.

        Raises: StoreError if it cannot be written.
        """
        with self.blobs.writing():
            checkpoint = save_state(state, self.blobs)
            Holds(self.blobs).add(self.run_id, checkpoint)
        return checkpoint

    def tidy(self) -> None:
        """Let go of committed checkpoints that newer commits have made unneeded.

        What is not committed is left alone: it may be another orchestrator's, who leads by now.
        """
        committed = self.store.checkpoints(self.run_id, limit=self.keep + _LATELY)
        holds, newest = Holds(self.blobs), committed[: self.keep]
        old = holds.of(self.run_id).intersection(committed[self.keep :])
        self._drop(holds, old.difference(newest))

    def _drop(self, holds: Holds, checkpoints: Collection[str]) -> None:
        """Now if nobody is writing, else another time; a run does not end for what it need not."""
        if not checkpoints:
            return
        try:
            with self.blobs.sweeping() as alone:
                if alone:
                    holds.drop(self.run_id, checkpoints)
        except (OSError, StoreError) as error:
            log.warning("old checkpoints of run %s stay for now: %s", self.run_id, error)
