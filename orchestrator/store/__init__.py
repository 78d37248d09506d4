"""The run database and the blobs beside it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from strategies.errors import StoreError

# SQLAlchemy and Alembic take longer to load than most commands take to run.
if TYPE_CHECKING:
    from sqlalchemy import URL

    from orchestrator.store.sql import SqlRunStore

__all__ = ["SqlRunStore", "open_store", "shown_url", "upgrade_database"]


def __getattr__(name: str) -> object:
    if name == "SqlRunStore":
        from orchestrator.store.sql import SqlRunStore

        return SqlRunStore
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@cache
def open_store(url: str) -> SqlRunStore:
    """The run database at ``url``, its schema made or checked; one per URL and process.

    Raises: SchemaVersionError, or StoreError for a URL that leads nowhere.
    """
    from orchestrator.store.address import make_engine, parse_url
    from orchestrator.store.schema import ensure_current
    from orchestrator.store.sql import SqlRunStore

    with _reaching(parse_url(url)):
        engine = make_engine(url)
        ensure_current(engine)
    return SqlRunStore(engine)


def upgrade_database(url: str) -> tuple[str | None, str]:
    """Schema versions before and after.

    Raises: SchemaVersionError, StoreError.
    """
    from orchestrator.store.address import make_engine, parse_url
    from orchestrator.store.schema import upgrade

    with _reaching(parse_url(url)):
        return upgrade(make_engine(url))


def shown_url(url: str) -> str:
    """``url`` as it may be printed: without passwords.

    Raises: StoreError for text that is no URL.
    """
    from orchestrator.store.address import parse_url, shown

    return shown(parse_url(url))


@contextmanager
def _reaching(url: URL) -> Iterator[None]:
    """Errors of ours for what goes wrong at first contact, which is not tried again."""
    from sqlalchemy.exc import DBAPIError

    from orchestrator.store.address import shown
    from orchestrator.store.faults import lasting, mendable
    from orchestrator.store.patience import first_line
    from orchestrator.store.same_file import DatabaseMovedError

    _make_parent(url)
    try:
        yield
    except (DBAPIError, DatabaseMovedError) as error:
        advice = lasting(error) or mendable(error) or "See that its server runs"
        raise StoreError(
            f"run database {shown(url)} cannot be opened: {first_line(error, url)}. {advice}; "
            "PERENNIAL_DATABASE says where it is"
        ) from None


def _make_parent(url: URL) -> None:
    try:
        if url.get_backend_name() == "sqlite" and url.database:
            Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(
            f"the folder of {url.database} cannot be made ({error.strerror}); set "
            "PERENNIAL_HOME or PERENNIAL_DATABASE to a place of yours"
        ) from None
