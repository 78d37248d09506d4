"""Files named by their own content: what is there is whole, or says that it is not."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Final

from orchestrator.trouble import in_words
from strategies.errors import BlobError, StoreError

_DIGEST: Final = re.compile("[0-9a-f]{64}")
# What may pass while one waits: a full disk, a quota, a network file system that is away.
_PASSING: Final = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.EROFS)
_PAUSES: Final = (0.1, 0.5, 2.0)  # s, before each further try
_NO_LOCKS: Final = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)
_LOCK_SECONDS: Final = 60.0


DAMAGED: Final = ".damaged"


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
            write_durably(path, data)
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
            self._set_aside(path)
            raise BlobError(
                f"checkpoint {path} is damaged: {len(data)} bytes with digest {found[:12]}…"
            )
        return data

    def _set_aside(self, path: Path) -> None:
        """Free the name: the same content, when it is made again, must be written again."""
        try:
            path.replace(path.with_suffix(DAMAGED))
        except OSError:
            return  # it stays as it is, and is found damaged again

    def stored(self) -> Iterator[Path]:
        """Every whole blob's file."""
        return (p for p in self.folder.glob("??/*") if _DIGEST.fullmatch(p.name))

    def rests(self) -> Iterator[Path]:
        """Files that are no blob: what a killed writer left, and what was found damaged."""
        return (p for p in self.folder.glob("??/*") if not _DIGEST.fullmatch(p.name))

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Nothing is swept away meanwhile, so that what is found stored stays until it is held.

        A file system without locks has no sweeps either.
        Raises: StoreError after a minute of somebody else's sweeping.
        """
        with self._locked(fcntl.LOCK_SH, _LOCK_SECONDS):
            yield

    @contextmanager
    def sweeping(self, patience_seconds: float = 0.0) -> Iterator[bool]:
        """Whether nobody writes meanwhile, so that what nobody holds may be deleted."""
        with self._locked(fcntl.LOCK_EX, patience_seconds) as alone:
            yield alone

    @contextmanager
    def _locked(self, how: int, seconds: float) -> Iterator[bool]:
        """The folder's lock; the kernel gives it back if its holder dies."""
        path = self.folder / ".lock"
        with _explained(path, 0):
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            locked = _flock(descriptor, how, seconds)
            if not locked and how == fcntl.LOCK_SH:
                raise StoreError(
                    f"{self.folder} is being cleaned up by another process for {seconds:.0f} s; "
                    "resume when it is done"
                )
            yield bool(locked)
        finally:
            os.close(descriptor)

    def has(self, digest: str) -> bool:
        """Whether a file of that name is there; ``get`` checks its content."""
        return self.path(digest).is_file()

    def delete(self, digest: str) -> None:
        """Remove the file if it is there."""
        self.path(digest).unlink(missing_ok=True)

    def path(self, digest: str) -> Path:
        """Where ``digest`` lies or would lie."""
        return self.folder / digest[:2] / digest


def _flock(descriptor: int, how: int, seconds: float) -> bool | None:
    """Whether the lock was had within ``seconds``; a shared one also where there are no locks."""
    end = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(descriptor, how | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= end:
                return False
            time.sleep(0.05)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            return how == fcntl.LOCK_SH
        else:
            return True


def write_durably(path: Path, data: bytes) -> None:
    """All or nothing, tried a few times where the trouble may pass.

    Raises: StoreError saying how much was to be written, where, and how much is free there.
    """
    for pause in _PAUSES:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(path, data)
        except OSError as error:
            if error.errno not in _PASSING:
                break
            time.sleep(pause)
        else:
            return
    with _explained(path, len(data)):
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, data)


@contextmanager
def _explained(path: Path, num_bytes: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"checkpoint of {num_bytes} bytes cannot be written: {in_words(error, path.parent)}"
        ) from error


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
