"""The run database and the blobs beside it."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError

from orchestrator.store.schema import ensure_current, upgrade
from orchestrator.store.sql import SqlRunStore, make_engine
from strategies.errors import StoreError

__all__ = ["SqlRunStore", "open_store", "upgrade_database"]


@cache
def open_store(url: str) -> SqlRunStore:
    """The run database at ``url``, its schema made or checked; one per URL and process.

    Raises: SchemaVersionError, or StoreError for a URL that leads nowhere.
    """
    _make_parent(url)
    try:
        engine = make_engine(url)
        ensure_current(engine)
    except (ArgumentError, NoSuchModuleError, DBAPIError, ImportError) as error:
        raise StoreError(_unreachable(url, error)) from None
    return SqlRunStore(engine)


def upgrade_database(url: str) -> tuple[str | None, str]:
    """Schema versions before and after.

    Raises: SchemaVersionError, StoreError.
    """
    _make_parent(url)
    try:
        return upgrade(make_engine(url))
    except (ArgumentError, NoSuchModuleError, DBAPIError, ImportError) as error:
        raise StoreError(_unreachable(url, error)) from None


def _make_parent(url: str) -> None:
    try:
        parsed = make_url(url)
        if parsed.drivername.startswith("sqlite") and parsed.database:
            Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
    except ArgumentError as error:
        raise StoreError(_unreachable(url, error)) from None
    except OSError as error:
        raise StoreError(
            f"the folder of {parsed.database} cannot be made ({error.strerror}); set "
            "PERENNIAL_HOME or PERENNIAL_DATABASE to a place of yours"
        ) from None


def _unreachable(url: str, error: Exception) -> str:
    shown = url if "@" not in url else url.rpartition("@")[2]  # no passwords in messages
    reason = str(getattr(error, "orig", None) or error).splitlines()[0]
    return (
        f"run database {shown} cannot be opened: {reason}; check PERENNIAL_DATABASE "
        "(an SQLAlchemy URL) and that its driver is installed"
    )
