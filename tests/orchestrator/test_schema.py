"""Alembic is the only source of the schema, and says what to do when a database does not fit."""

from __future__ import annotations

import json
import os
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from typer.testing import CliRunner

from orchestrator.cli.app import app
from orchestrator.store import SqlRunStore, open_store, schema, upgrade_database
from orchestrator.store.address import make_engine
from orchestrator.store.tables import Table
from orchestrator.store.totals import round_totals
from strategies.errors import SchemaVersionError, StoreError
from tests.conftest import REPOSITORY
from tests.contract.test_run_store import a_round
from tests.postgres import PASSWORD


def test_models_equal_migrations(database_url):
    upgrade_database(database_url)
    with make_engine(database_url).connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Table.metadata) == []


def test_upgrade_reports_both_versions(database_url):
    assert upgrade_database(database_url) == (None, "0004")
    assert upgrade_database(database_url) == ("0004", "0004")


def test_a_database_of_the_first_schema_is_upgraded_with_its_runs(database_url):
    """A run scored before flips were counted has compared nothing, and goes on."""
    url = database_url
    with make_engine(url).begin() as connection:
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS))
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        for statement in OLD_RUN:
            connection.exec_driver_sql(statement)
    with pytest.raises(SchemaVersionError, match=r"has schema 0001.*perennial db upgrade"):
        open_store(url)
    assert upgrade_database(url) == ("0001", "0004")
    store = open_store(url)
    (found,) = store.rounds("old")
    assert found.drift == {}
    assert_summed(store)
    (score,) = found.scores
    assert (score.num_correct, score.num_lost, score.num_gained, score.num_compared) == (3, 0, 0, 0)
    assert store.commit_round("old", a_round("old", 1, drift={"q": 0.5}))
    assert store.rounds("old")[1].drift == {"q": 0.5}


def assert_summed(store: SqlRunStore) -> None:
    """What later revisions keep beside the replies and scores is made of what was there."""
    rounds, sums = store.rounds("old"), store.sums("old")
    assert [step.totals for step in sums.steps] == [round_totals(record) for record in rounds]
    assert sums.steps[0].totals.truncation_max == 0.25
    assert sums.scores.numbers.tolist() == [[0, 0, 0, 4, 3, 0, 0, 0]]
    (client,) = sums.clients
    assert (client.kind, client.asked, client.last_ranks) == (None, 1, {"q": 2})


MIGRATIONS = REPOSITORY / "orchestrator" / "store" / "migrations"
OLD_RUN = (
    "INSERT INTO runs VALUES ('old', 'n', 'interrupted', 'r', '{}', 'd', '0', '{}', '[]', "
    "'2026-03-04 05:06:07', NULL, NULL, '{}', NULL, NULL, NULL)",
    "INSERT INTO rounds (run_id, step_index, task_index, round_index, kind, committed_at, "
    "checkpoint, seconds, metrics, truncation) "
    "VALUES ('old', 0, -1, 0, 'evaluate', '2026-03-04 05:06:07', 'c', '{}', '{}', "
    """'{"q": 0.25, "k": 0.125}')""",
    "INSERT INTO replies (round_id, assignment_id, client_id, status, num_examples, ranks, "
    "bytes_down, bytes_up, seconds, metrics, peak_memory_bytes) "
    """VALUES (1, 'old/0/c0', 'c0', 'ok', 8, '{"q": 2}', 7, 9, '{}', '{}', 5)""",
    "INSERT INTO scores (round_id, client_id, after_task, task_index, num_examples, num_correct, "
    "loss_sum, mid_task) VALUES (1, 'c0', 0, 0, 4, 3, '1.0', '0')",
)


def test_many_who_start_at_once_make_one_schema(database_url):
    """Each with its own connections, as processes have them."""
    number = 6
    together = threading.Barrier(number)

    def upgrade(_: int) -> tuple[str | None, str]:
        together.wait()
        return upgrade_database(database_url)

    with ThreadPoolExecutor(number) as pool:
        versions = list(pool.map(upgrade, range(number)))
    assert sorted(versions, key=repr) == [("0004", "0004")] * (number - 1) + [(None, "0004")]


def test_who_opens_a_database_that_is_being_made_waits_for_it(postgres_server):
    url = postgres_server.new_database()
    holder = make_engine(url)
    with ThreadPoolExecutor(1) as pool:
        with schema._alone(holder) as connection:
            connection.exec_driver_sql("CREATE TABLE half_made (x INTEGER)")
            opening = pool.submit(open_store, url)
            with pytest.raises(TimeoutError):
                opening.result(timeout=0.5)
            connection.exec_driver_sql("DROP TABLE half_made")
        assert opening.result(timeout=30).list_runs() == []
    postgres_server.drop(url)


def test_db_upgrade_and_doctor_name_the_database_without_its_password(
    postgres_server, tmp_path, monkeypatch
):
    url = postgres_server.new_database()
    monkeypatch.setenv("PERENNIAL_HOME", str(tmp_path))
    monkeypatch.setenv("PERENNIAL_DATABASE", url)
    run = CliRunner()
    first, second = run.invoke(app, ["db", "upgrade"]), run.invoke(app, ["db", "upgrade"])
    assert (first.exit_code, first.output) == (0, "upgraded from nothing to 0004\n")
    assert second.output == "already at 0004\n"
    said = run.invoke(app, ["doctor", "--format", "json"]).output
    (found,) = [c for c in json.loads(said)["checks"] if c["check"] == "run database"]
    assert found["ok"]
    assert re.search(r"postgresql\+psycopg://perennial:\*\*\*@/db\d+.* answers", found["detail"])
    assert PASSWORD not in said
    postgres_server.drop(url)


def set_version(path: Path, version: str) -> None:
    with make_engine(f"sqlite:///{path}").begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = ?", (version,))


def test_a_newer_database_is_refused_by_name(tmp_path):
    path = tmp_path / "a.db"
    upgrade_database(f"sqlite:///{path}")
    set_version(path, "9999")
    with pytest.raises(SchemaVersionError, match=r"9999.*newer.*0004; upgrade perennial"):
        open_store(f"sqlite:///{path}")
    with pytest.raises(SchemaVersionError, match="upgrade perennial"):
        upgrade_database(f"sqlite:///{path}")


def test_a_database_of_something_else_names_the_command(tmp_path):
    path = tmp_path / "a.db"
    with make_engine(f"sqlite:///{path}").begin() as connection:
        connection.exec_driver_sql("CREATE TABLE other (x INTEGER)")
    with pytest.raises(SchemaVersionError, match="perennial db upgrade"):
        open_store(f"sqlite:///{path}")


def test_a_url_that_leads_nowhere_says_so_without_its_password():
    with pytest.raises(StoreError, match="PERENNIAL_DATABASE") as caught:
        open_store("nosuchdb://user:secret@host/name")
    assert "secret" not in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(StoreError, match="set PERENNIAL_HOME"):
        open_store(f"sqlite:///{tmp_path / 'deep' / 'a.db'}")


def test_a_path_through_a_file_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="set PERENNIAL_HOME"):
        open_store(f"sqlite:///{tmp_path / 'file' / 'a.db'}")
