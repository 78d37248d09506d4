"""Which schema a database has, and how it gets the current one."""

from __future__ import annotations

from importlib.resources import as_file, files
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, inspect

from strategies.errors import SchemaVersionError


def upgrade(engine: Engine) -> tuple[str | None, str]:
    """Bring the schema to this program's version; the versions before and after.

    Raises: SchemaVersionError if the database is newer than this program.
    """
    with (
        as_file(files("orchestrator.store") / "migrations") as folder,
        engine.begin() as connection,
    ):
        config = _config(folder)
        before, head = _revision(connection), _head(config)
        _refuse_newer(engine, config, before)
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
    return before, head


def ensure_current(engine: Engine) -> None:
    """Make the schema of an empty database; check that of any other.

    Raises: SchemaVersionError naming both versions and what to do.
    """
    with as_file(files("orchestrator.store") / "migrations") as folder:
        config = _config(folder)
        with engine.connect() as connection:
            found = _revision(connection)
            empty = found is None and not inspect(connection).get_table_names()
        head = _head(config)
    if found == head:
        return
    if empty:
        upgrade(engine)
        return
    _refuse_newer(engine, config, found)
    raise SchemaVersionError(
        f"database {_name(engine)} has schema {found or 'of something else'}, this program needs "
        f"{head}; run `perennial db upgrade` (back the database up first)"
    )


def _refuse_newer(engine: Engine, config: Config, found: str | None) -> None:
    known = {revision.revision for revision in ScriptDirectory.from_config(config).walk_revisions()}
    if found is not None and found not in known:
        raise SchemaVersionError(
            f"database {_name(engine)} has schema {found}, which is newer than this program's "
            f"{_head(config)}; upgrade perennial"
        )


def _config(folder: Path) -> Config:
    config = Config()
    config.set_main_option("script_location", str(folder))
    return config


def _head(config: Config) -> str:
    head = ScriptDirectory.from_config(config).get_current_head()
    assert head is not None  # noqa: S101 - the first migration ships with this file
    return head


def _revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _name(engine: Engine) -> str:
    return engine.url.render_as_string(hide_password=True)
