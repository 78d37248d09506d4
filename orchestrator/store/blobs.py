"""Files named by their own content: what is there is whole, or says that it is not."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile

from strategies.errors import BlobError, StoreError


@dataclass(frozen=True, slots=True)
class BlobStore:
    """``<folder>/<first two digits>/<sha256>``."""

    folder: Path

    def put(self, data: bytes) -> str:
        """Store ``data`` durably; its digest.  Storing it again is free.

        Raises: StoreError if it cannot be written; nothing half-written stays under its name.
        """
        digest = hashlib.sha256(data).hexdigest()
        path = self.path(digest)
        if not path.exists():
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                _write(path, data)
            except OSError as error:
                raise StoreError(
                    f"checkpoint of {len(data)} bytes cannot be written to {path.parent}: "
                    f"{error.strerror}; free space there or set PERENNIAL_HOME, then resume"
                ) from error
        return digest

    def get(self, digest: str) -> bytes:
        """The content of ``digest``.

        Raises: BlobError naming the file if it is missing or damaged.
        """
        path = self.path(digest)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise BlobError(f"checkpoint {path} cannot be read: {error.strerror}") from None
        found = hashlib.sha256(data).hexdigest()
        if found != digest:
            raise BlobError(
                f"checkpoint {path} is damaged: {len(data)} bytes with digest {found[:12]}…"
            )
        return data

    def has(self, digest: str) -> bool:
        """Whether a file of that name is there; ``get`` checks its content."""
        return self.path(digest).is_file()

    def delete(self, digest: str) -> None:
        """Remove the file if it is there."""
        self.path(digest).unlink(missing_ok=True)

    def path(self, digest: str) -> Path:
        """Where ``digest`` lies or would lie."""
        return self.folder / digest[:2] / digest


def _write(path: Path, data: bytes) -> None:
    """All or nothing, and on disk before it has its name."""
    with NamedTemporaryFile(dir=path.parent, prefix=".", delete=False) as file:
        temporary = Path(file.name)
        try:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the name too
    finally:
        os.close(folder)
