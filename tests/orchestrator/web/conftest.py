"""A dashboard over a small real database: two recorded runs, one under way, one not begun."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from orchestrator.home import Home
from orchestrator.store import SqlRunStore, open_store
from orchestrator.store.base import RunStatus
from orchestrator.web import WebSettings, create_app
from tests.orchestrator.recorded_run import recorded_run

TOKEN = "a-token-of-enough-letters"  # noqa: S105 - of these tests


def store_of(home: Home) -> SqlRunStore:
    return open_store(home.database_url)


def stored(home: Home, name: str, *, kept: float = 0.94, steps: int | None = None) -> str:
    """A recorded run in the database, with its first ``steps``; completed if it has all."""
    store = home.store()
    run, _, events = recorded_run(name=name, kept=kept)
    made = store.create_run(
        name=name, config=run.config, config_digest=run.config_digest,
        code_version=run.code_version, environment=run.environment,
    )  # fmt: skip
    store.transition(made.run_id, RunStatus.RUNNING, expected=[RunStatus.CREATED], reason="go")
    store.describe(made.run_id, task_names=run.task_names)
    commit(home, made.run_id, name, kept=kept, first=0, last=steps)
    if steps is None:
        for event in events:
            store.append_event(made.run_id, event.kind, event.message, event.data)
        store.transition(
            made.run_id, RunStatus.COMPLETED, expected=[RunStatus.RUNNING], reason="all steps done"
        )
    return made.run_id


def commit(
    home: Home, run_id: str, name: str, *, kept: float = 0.94, first: int, last: int | None
) -> None:
    _, rounds, _ = recorded_run(name=name, kept=kept)
    for record in rounds[first:last]:
        replies = tuple(
            replace(reply, assignment_id=f"{run_id}/{reply.assignment_id}")
            for reply in record.replies
        )
        assert home.store().commit_round(run_id, replace(record, replies=replies))


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[str, str, str]]:
    """A database file with three runs, and their ids."""
    folder = tmp_path_factory.mktemp("made-once")
    home = Home(folder=folder, database_url=f"sqlite:///{folder / 'perennial.db'}")
    done, other = stored(home, "intents"), stored(home, "forgetful", kept=0.7)
    under_way = stored(home, "now", steps=7)
    with closing(sqlite3.connect(folder / "perennial.db")) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return folder / "perennial.db", (done, other, under_way)


@pytest.fixture
def runs(home: Home, made_once: tuple[Path, tuple[str, str, str]]) -> tuple[str, str, str]:
    """Two completed runs that differ, and one under way with seven steps."""
    path, ids = made_once
    home.folder.mkdir(parents=True)
    shutil.copy(path, home.folder / path.name)
    return ids


@pytest.fixture
def settings() -> WebSettings:
    return WebSettings(token=TOKEN, poll_seconds=0.01, heartbeat_seconds=0.05)


@pytest.fixture
def client(home: Home, settings: WebSettings) -> Iterator[TestClient]:
    """A browser that follows no redirects by itself."""
    with TestClient(
        create_app(home, settings), base_url="http://localhost", follow_redirects=False
    ) as made:
        yield made
