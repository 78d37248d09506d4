"""Where everything lies: one data directory."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryFile

from orchestrator.store import open_store
from orchestrator.store.base import RunStore
from orchestrator.store.blobs import BlobStore
from strategies.errors import StoreError
from strategies.limits import is_identifier
from strategies.paths import data_directory


@dataclass(frozen=True, slots=True, kw_only=True)
class Home:
    """The data directory (``PERENNIAL_HOME``) and the run database (``PERENNIAL_DATABASE``)."""

    folder: Path
    database_url: str = field(repr=False)  # may hold a password

    @classmethod
    def from_environment(cls) -> Home:
        """The data directory, and SQLite in it unless ``PERENNIAL_DATABASE`` says otherwise."""
        folder = data_directory()
        url = os.environ.get("PERENNIAL_DATABASE") or f"sqlite:///{folder / 'perennial.db'}"
        return cls(folder=folder, database_url=url)

    def environment(self) -> dict[str, str]:
        """What a child process needs to find the same place."""
        return {"PERENNIAL_HOME": str(self.folder), "PERENNIAL_DATABASE": self.database_url}

    def store(self) -> RunStore:
        """The run database, made on first use.

        Raises: StoreError if the data directory cannot be written, SchemaVersionError.
        """
        self.require_writable()
        return open_store(self.database_url)

    def blobs(self) -> BlobStore:
        """Checkpoints by digest."""
        return BlobStore(self.folder / "blobs")

    def run_folder(self, run_id: str) -> Path:
        """What belongs to one run: log, adapters, report.

        Raises: StoreError for an id that is more than the name of a folder.
        """
        if not is_identifier(run_id):
            raise StoreError(f"run id {run_id!r:.80} cannot name a folder; see `perennial runs`")
        return self.folder / "runs" / run_id

    @property
    def cache_folder(self) -> Path:
        """Tokenised data and pretext-trained bases; safe to delete."""
        return self.folder / "cache"

    @property
    def client_folder(self) -> Path:
        """Durable state of simulated clients."""
        return self.folder / "clients"

    def require_writable(self) -> None:
        """Make the data directory, and see that a file can be made in it.

        Raises: StoreError.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with TemporaryFile(dir=self.folder):
                pass
        except OSError as error:
            raise StoreError(
                f"data directory {self.folder} cannot be written ({error.strerror}); "
                "set PERENNIAL_HOME to a folder of yours"
            ) from None
