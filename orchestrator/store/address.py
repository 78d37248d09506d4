"""Where the run database is: its URL, the driver that speaks to it, and how it is shown."""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import quote, quote_plus

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from orchestrator.store.same_file import SameFile
from strategies.errors import StoreError

_INSTALL: Final = "pip install 'perennial[postgres]'"
READS: Final = "perennial_reads"  # an execution option: the transaction writes nothing
_SECRETS: Final = ("password", "sslpassword")
# A peer that is gone is noticed within about 20 s, and no lock is waited for or held for ever.
_POSTGRES: Final = {
    "application_name": "perennial",
    "client_encoding": "utf8",
    "connect_timeout": 5,  # s
    "keepalives_idle": 10,  # s
    "keepalives_interval": 3,  # s
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,  # ms
    "options": "-c lock_timeout=30s -c idle_in_transaction_session_timeout=60s",
}


def parse_url(text: str) -> URL:
    """The SQLAlchemy URL that ``text`` means; ``postgres://`` and ``postgresql://`` are psycopg's.

    Raises: StoreError for text that is no URL; what may be a password is not repeated.
    """
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):  # the latter for a port that is no number
        raise StoreError(_no_url(text, "is no SQLAlchemy URL")) from None
    if "@" in (url.host or ""):
        raise StoreError(_no_url(text, "has an @ in its user name or password; write it as %40"))
    if url.drivername in ("postgres", "postgresql"):
        return url.set(drivername="postgresql+psycopg")
    return url


def _no_url(text: str, fault: str) -> str:
    host = text.rpartition("@")[2].partition("?")[0]
    return (
        f"run database …{host} {fault}; expected sqlite:///PATH or "
        "postgresql://USER:PASSWORD@HOST/NAME in PERENNIAL_DATABASE"
    )


def shown(url: URL) -> str:
    """The URL without its passwords, wherever in it they stand."""
    hidden = {name: "hidden" for name in _SECRETS if name in url.query}
    return url.update_query_dict(hidden).render_as_string(hide_password=True)


def scrubbed(text: str, url: URL) -> str:
    """``text``, a driver's message say, without the passwords of ``url``."""
    found = [url.password, *(url.query.get(name) for name in _SECRETS)]
    for secret in (str(each) for each in found if each):
        for form in (secret, quote(secret, safe=""), quote_plus(secret)):
            text = text.replace(form, "***")
    return text


def make_engine(text: str) -> Engine:
    """An engine for a database URL; nothing is connected yet.

    SQLite is in WAL mode, with foreign keys, and its writers queue, not fail.
    Raises: StoreError if the URL is none, or its driver is not installed.
    """
    url = parse_url(text)
    try:
        engine = create_engine(url, connect_args=_connect_args(url))
    except (ImportError, NoSuchModuleError) as error:
        advice = (
            f"run `{_INSTALL}`"
            if url.get_backend_name() == "postgresql"
            else "set PERENNIAL_DATABASE to sqlite:///PATH or postgresql://…"
        )
        raise StoreError(
            f"run database {shown(url)} needs a driver that is not here ({error}); {advice}"
        ) from None
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _prepare_sqlite)
        SameFile.watch(engine)
        event.listen(engine, "begin", _begin)
    return engine


def _connect_args(url: URL) -> dict[str, Any]:
    """What the URL itself says goes first."""
    if url.drivername != "postgresql+psycopg":
        return {}
    return {name: value for name, value in _POSTGRES.items() if name not in url.query}


def _prepare_sqlite(connection: Any, _record: object) -> None:  # a DB-API connection
    connection.isolation_level = None  # BEGIN is ours, see below
    cursor = connection.cursor()
    for pragma in (
        "journal_mode=WAL",
        "busy_timeout=30000",
        "foreign_keys=ON",
        "synchronous=NORMAL",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin(connection: Connection) -> None:
    # A reader sees one instant without any lock, so it waits for no writer.  A transaction that
    # reads first and writes later fails at once if another wrote in between, whatever the busy
    # timeout; taking the write lock first makes it wait instead.
    reads = connection.get_execution_options().get(READS)
    connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")
