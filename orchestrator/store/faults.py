"""What a database's fault means to the one who runs it, and whether it is worth waiting."""

from __future__ import annotations

from typing import Final

from sqlalchemy.exc import DBAPIError

from orchestrator.store.same_file import DatabaseMovedError

# By the start of SQLite's error name or PostgreSQL's SQLSTATE.  What an operator can mend in a
# moment is waited for, a damaged file is not.
_WAITED: Final = {
    "SQLITE_FULL": "Free space on its disk",
    "SQLITE_IOERR": "Look after its disk",
    "SQLITE_READONLY": "Make it and its folder writable",
    "SQLITE_CANTOPEN": "See that its folder is there and writable",
    "SQLITE_PERM": "Make it and its folder readable",
    "53": "Free space, memory or connections on its server",
    "58": "Look after its server's disk",
    "25006": "Make its server writable",
}
_DAMAGED: Final = {
    "SQLITE_NOTADB": "The file is no database: put a backup in its place, or name another path",
    "SQLITE_CORRUPT": "The file is damaged: put a backup in its place, or save what `sqlite3 FILE "
    ".recover` finds",
    "XX": "The database is damaged: restore a backup",
    "42P01": "It is not the database that was opened: put the right one in its place",
}
_NO_TABLE: Final = "no such table"
MOVED: Final = "Put it back, or a backup of it"


def code_of(error: DBAPIError | DatabaseMovedError) -> str:
    """SQLite's error name or PostgreSQL's SQLSTATE; empty where there is none."""
    cause = getattr(error, "orig", None)
    return str(getattr(cause, "sqlite_errorname", None) or getattr(cause, "sqlstate", None) or "")


def mendable(error: DBAPIError | DatabaseMovedError) -> str | None:
    """What mends a fault of the machine below the database; None for other faults."""
    return MOVED if isinstance(error, DatabaseMovedError) else _advice(_WAITED, code_of(error))


def lasting(error: DBAPIError | DatabaseMovedError) -> str | None:
    """What to do about a database that waiting does not bring back; None for other faults."""
    if _NO_TABLE in str(getattr(error, "orig", "")):  # SQLite has no code for it
        return _DAMAGED["42P01"]
    return _advice(_DAMAGED, code_of(error))


def _advice(table: dict[str, str], code: str) -> str | None:
    return next((advice for start, advice in table.items() if code.startswith(start)), None)
