"""Which schema a database has, and how it gets the current one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import as_file, files
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, func, inspect, select

from orchestrator.store.address import shown
from strategies.errors import SchemaVersionError

_LOCK: Final = 0x706572656E6E6961  # any number of ours: "perennia" in ASCII


def upgrade(engine: Engine) -> tuple[str | None, str]:
    """Bring the schema to this program's version; the versions before and after.

    Raises: SchemaVersionError if the database is newer than this program.
    """
    with _migrations() as config, _alone(engine) as connection:
        before = _revision(connection)
        _refuse_newer(engine, config, before)
        return before, _upgraded(connection, config)


def ensure_current(engine: Engine) -> None:
    """Make the schema of an empty database; check that of any other.

    Raises: SchemaVersionError naming both versions and what to do.
    """
    with _migrations() as config, _alone(engine) as connection:
        found, head = _revision(connection), _head(config)
        if found == head:
            return
        if found is None and not inspect(connection).get_table_names():
            _upgraded(connection, config)
            return
    _refuse_newer(engine, config, found)
    raise SchemaVersionError(
        f"database {shown(engine.url)} has schema {found or 'of something else'}, this program "
        f"needs {head}; run `perennial db upgrade` (back the database up first)"
    )


@contextmanager
def _alone(engine: Engine) -> Iterator[Connection]:
    """A transaction in which no other process looks at the schema or changes it.

    SQLite's holds the write lock from its start; PostgreSQL's takes a lock made for this.
    """
    with engine.begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(select(func.pg_advisory_xact_lock(_LOCK)))
        yield connection


def _upgraded(connection: Connection, config: Config) -> str:
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
    return _head(config)


def _refuse_newer(engine: Engine, config: Config, found: str | None) -> None:
    known = {revision.revision for revision in ScriptDirectory.from_config(config).walk_revisions()}
    if found is not None and found not in known:
        raise SchemaVersionError(
            f"database {shown(engine.url)} has schema {found}, which is newer than this program's "
            f"{_head(config)}; upgrade perennial"
        )


@contextmanager
def _migrations() -> Iterator[Config]:
    with as_file(files("orchestrator.store") / "migrations") as folder:
        config = Config()
        config.set_main_option("script_location", str(folder))
        yield config


def _head(config: Config) -> str:
    head = ScriptDirectory.from_config(config).get_current_head()
    assert head is not None  # noqa: S101 - the first migration ships with this file
    return head


def _revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()
