"""Notices that a SQLite file was moved, removed or replaced under a process that has it open.

The process would go on writing into a file that no longer has a name, and all it commits would be
gone with the process; or a new, empty file would appear where the old one was.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, event

from strategies.errors import StoreError


class DatabaseMovedError(StoreError):
    """The file at the database's path is not the one that was opened."""


@dataclass(slots=True)
class SameFile:
    """The file that was there at the first connection; every later use must find it again."""

    path: Path
    identity: tuple[int, int] | None = None

    @classmethod
    def watch(cls, engine: Engine) -> None:
        """Look before every connection and every transaction of a SQLite engine on a file."""
        name = engine.url.database
        if not name or name.startswith((":", "file:")):
            return
        same = cls(Path(name))
        event.listen(engine, "do_connect", same.before_connecting)
        event.listen(engine, "connect", same.connected)
        event.listen(engine, "begin", same.beginning)

    def before_connecting(self, *_: Any) -> None:
        """A connection is about to be made, which would make a file that is not there."""
        if self.identity is not None:
            self.check()

    def connected(self, *_: Any) -> None:
        """A connection was made, and the file with it."""
        if self.identity is None:
            self.identity = self._found()

    def beginning(self, _: Connection) -> None:
        """A transaction begins."""
        self.check()

    def check(self) -> None:
        """Raises: DatabaseMovedError."""
        found = self._found()
        if found != self.identity:
            what = "was removed" if found is None else "was replaced by another file"
            raise DatabaseMovedError(f"{self.path} {what} while it was in use")

    def _found(self) -> tuple[int, int] | None:
        try:
            status = self.path.stat()
        except FileNotFoundError:
            return None
        return status.st_dev, status.st_ino
