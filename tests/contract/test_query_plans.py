"""Every query of a page walks an index: none reads a table that grows from end to end."""

from __future__ import annotations

import pytest
from sqlalchemy import select
from sqlalchemy.dialects import sqlite

from orchestrator.store import open_store, reading, tallies
from orchestrator.store.address import make_engine
from orchestrator.store.base import RunStatus
from orchestrator.store.browsing import EventWindow, Wanted, Window
from orchestrator.store.tables import TagRow
from tests.contract.test_run_store import a_round, new_run

QUERIES = {
    "newest runs": reading.page_of_runs(Wanted()),
    "older runs": reading.page_of_runs(Wanted(offset=900)),
    "runs by text": reading.page_of_runs(Wanted(text="x")),
    "runs by tag": reading.page_of_runs(Wanted(tag="x")),
    "runs of a status": reading.page_of_runs(Wanted(status=[RunStatus.FAILED])),
    "steps": reading.all_steps("r"),
    "some steps": reading.some_steps("r", Window(first=100)),
    "clients": reading.all_clients("r"),
    "scores": reading.scores_of("r"),
    "drift": reading.drift_of("r"),
    "steps that are new": tallies.steps_after("r", 3),
    "costs": reading.costs_of("r"),
    "replies": reading.replies_of_step("r", 3),
    "a client's replies": reading.parts_of_client("r", "c0"),
    "a client's runs": reading.runs_of_client("c0"),
    "clients by id": reading.clients_named("c"),
    "all clients": reading.clients_named(""),
    "pulse": reading.pulse_of("r"),
    "events": reading.some_events("r", EventWindow(after=3)),
    "newest events": reading.some_events("r", EventWindow(before=3)),
    "releases": reading.some_events("r", EventWindow(kinds=["published"])),
    "tags of runs": select(TagRow.tag).where(TagRow.run_id.in_(["r", "s"])),
}
SORTED = {
    "runs by accuracy": reading.page_of_runs(Wanted(sort="acc")),
    "runs by forgetting": reading.page_of_runs(Wanted(sort="forgetting", descending=False)),
}


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    """Large enough tables' statistics come from ANALYZE; without any SQLite counts on indices."""
    url = f"sqlite:///{tmp_path_factory.mktemp('plans') / 'a.db'}"
    store = open_store(url)
    store.commit_round((run := new_run(store)).run_id, a_round(run.run_id))
    return make_engine(url)


def plan(engine, query) -> list[str]:
    text = str(query.compile(dialect=sqlite.dialect(), compile_kwargs={"literal_binds": True}))
    with engine.connect() as connection:
        rows = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {text}").all()
    return [row[-1] for row in rows]


@pytest.mark.parametrize("name", QUERIES)
def test_no_page_reads_a_whole_table(engine, name):
    steps = plan(engine, QUERIES[name])
    assert any("INDEX" in step or "PRIMARY KEY" in step for step in steps), steps
    for step in steps:
        assert not step.startswith("SCAN") or "INDEX" in step, steps


@pytest.mark.parametrize("name", SORTED)
def test_runs_are_sorted_by_an_index_where_the_order_allows_it(engine, name):
    """Runs without a value come last in either order: SQLite may sort ids, but never replies."""
    steps = plan(engine, SORTED[name])
    assert not any(table in step for step in steps for table in ("replies", "rounds", "scores"))


def test_a_query_without_an_index_would_be_seen(engine):
    from orchestrator.store.tables import ReplyRow

    steps = plan(engine, select(ReplyRow.reply_id).where(ReplyRow.status == "failed"))
    assert any(step.startswith("SCAN") and "INDEX" not in step for step in steps)
