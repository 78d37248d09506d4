"""Metrics of the run database: what they say, that they stay few, and that counters go on."""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from orchestrator.store import SqlRunStore, open_store
from orchestrator.store.address import make_engine
from orchestrator.store.base import LEASE, EventRecord, RunStatus
from orchestrator.store.patience import Patience
from orchestrator.store.tallies import Increment, Mark, Tallies
from orchestrator.summary import show
from orchestrator.telemetry import RunCollector, catalog
from orchestrator.telemetry import render as render_once
from orchestrator.telemetry.collector import RECENT_RUNS
from strategies.errors import StoreError
from tests.orchestrator.recorded_run import CLIENTS, TASKS, recorded_run

Values = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@pytest.fixture
def store(tmp_path: Path) -> SqlRunStore:
    return open_store(f"sqlite:///{tmp_path / 'runs.db'}")


def a_run(store: SqlRunStore, *, steps: int | None = None, config: object = None) -> str:
    """The recorded run, under way, with its first ``steps`` steps committed."""
    run, rounds, _ = recorded_run()
    made = store.create_run(
        name=run.name,
        config=config or run.config,
        config_digest="d",
        code_version="0",
        environment={},
    )
    store.transition(
        made.run_id, RunStatus.RUNNING, expected=[RunStatus.CREATED], reason="", owner="host:1:a"
    )
    store.describe(made.run_id, task_names=TASKS)
    commit(store, made.run_id, 0, len(rounds) if steps is None else steps)
    return made.run_id


def commit(store: SqlRunStore, run_id: str, first: int, end: int) -> None:
    _, rounds, _ = recorded_run()
    for record in rounds[first:end]:
        replies = tuple(
            replace(reply, assignment_id=f"{run_id}/{reply.assignment_id}")
            for reply in record.replies
        )
        failed = EventRecord(at=record.committed_at, kind="client-failed", message="x")
        events = tuple(failed for reply in replies if reply.status == "failed")
        assert store.commit_round(run_id, replace(record, replies=replies, events=events))


def render(store: SqlRunStore) -> bytes:
    """Once every run was read, however slow this machine is."""
    while value(text := render_once(store), "scrape_pending_runs"):
        pass
    return text


def values(text: bytes) -> Values:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def value(text: bytes, name: str, **labels: str) -> float:
    return values(text)[f"perennial_{name}", tuple(sorted(labels.items()))]


def test_what_a_run_says(store: SqlRunStore) -> None:
    run_id = a_run(store)
    store.renew_lease(run_id, "host:1:a", LEASE, progress={"clients_asked": 10, "clients_done": 4})
    _, rounds, _ = recorded_run()
    replies = [reply for record in rounds for reply in record.replies]
    text = render(store)
    assert value(text, "database_up") == 1
    assert value(text, "runs", status="running") == 1
    assert value(text, "runs", status="failed") == 0
    assert value(text, "rounds_total", run=run_id, kind="train") == 15
    assert value(text, "bytes_total", run=run_id, direction="up") == sum(
        r.bytes_up for r in replies
    )
    assert value(text, "bytes_total", run=run_id, direction="down") == sum(
        r.bytes_down for r in replies
    )
    assert value(text, "failures_total", run=run_id, reason="not-finite") == 1
    assert value(text, "deadline_misses_total", run=run_id) == 2
    assert value(text, "replies_total", run=run_id, status="ok") == len(replies) - 3
    assert value(text, "round_phase_seconds_total", run=run_id, phase="aggregate") == (
        pytest.approx(15 * 0.3)
    )
    assert value(text, "clients", run=run_id, state="answered") == 4
    assert value(text, "clients", run=run_id, state="waiting") == 6
    assert value(text, "events_total", run=run_id, kind="client-failed") == 3
    truncation = max(rounds[-2].truncation.values())  # of the newest round, not the largest ever
    found = value(text, "aggregation_truncation_error_ratio", run=run_id)
    assert found == pytest.approx(truncation)
    committed = value(text, "run_last_commit_timestamp_seconds", run=run_id)
    assert committed == rounds[-1].committed_at.timestamp()
    lease = value(text, "run_lease_expiry_timestamp_seconds", run=run_id) - time.time()
    assert 0 < lease <= LEASE.total_seconds()


def test_quality_is_that_of_the_summary(store: SqlRunStore) -> None:
    run_id = a_run(store)
    record = store.get_run(run_id)
    shown = show(record, store.rounds(run_id), store.events(run_id))
    text = render(store)
    assert value(text, "accuracy_ratio", run=run_id) == pytest.approx(shown["acc"])
    assert value(text, "forgetting_ratio", run=run_id) == pytest.approx(shown["forgetting"])
    for task, accuracy in enumerate(shown["accuracy_matrix"][-1]):
        found = value(text, "task_accuracy_ratio", run=run_id, task=str(task))
        assert found == pytest.approx(accuracy)
    for task, lost in enumerate(shown["forgetting_per_task"]):
        found = value(text, "task_forgetting_ratio", run=run_id, task=str(task))
        assert found == pytest.approx(lost)


def test_ranks_are_counted_by_hand(store: SqlRunStore) -> None:
    # 15 rounds; of clients 0 to 9, four train 4 groups at rank 2, three 8 at 4, three 12 at 8, and
    # all of them the dense head.
    run_id = a_run(store)
    text = render(store)
    below = {
        bound: value(text, "rank_bucket", run=run_id, le=f"{bound:.1f}")
        for bound in (0, 1, 2, 4, 8)
    }
    assert below == {0: 150, 1: 150, 2: 150 + 240, 4: 150 + 240 + 360, 8: 150 + 240 + 360 + 540}
    assert value(text, "rank_count", run=run_id) == value(
        text, "rank_bucket", run=run_id, le="+Inf"
    )
    assert value(text, "rank_sum", run=run_id) == 240 * 2 + 360 * 4 + 540 * 8


def counters(text: bytes) -> Values:
    names = {each.series for each in catalog.ALL if each.kind == "counter"}
    return {key: found for key, found in values(text).items() if key[0] in names}


def test_reading_step_by_step_is_reading_at_once(database_url: str) -> None:
    store = open_store(database_url)
    run_id = a_run(store, steps=0)
    before = counters(render(store))
    for step in range(21):
        commit(store, run_id, step, step + 1)
        now = counters(render(store))
        assert all(now[key] >= found for key, found in before.items())
        before = now
    assert value(render(store), "rank_bucket", run=run_id, le="8.0") == 150 + 240 + 360 + 540
    another = SqlRunStore(store._sessions.engine)  # of a process that was started anew
    assert counters(render(another)) == before


def test_counters_go_on_when_a_run_is_resumed(store: SqlRunStore) -> None:
    run_id = a_run(store, steps=9)
    before = counters(render(store))
    ended = RunStatus.INTERRUPTED
    store.transition(run_id, ended, expected=[RunStatus.RUNNING], reason="power", owner=None)
    render(store)
    store.transition(run_id, RunStatus.RUNNING, expected=[ended], reason="resumed", owner="h:2:b")
    commit(store, run_id, 9, 12)
    after = counters(render(store))
    assert all(after[key] >= found for key, found in before.items())
    rounds = ("perennial_rounds_total", (("kind", "train"), ("run", run_id)))
    assert after[rounds] == before[rounds] + 3


def test_forgotten_steps_are_not_counted_though_their_numbers_come_again(
    store: SqlRunStore,
) -> None:
    run_id = a_run(store, steps=9)
    render(store)
    store.rewind(run_id, 4)
    _, rounds, _ = recorded_run()
    for record in rounds[4:9]:
        later = replace(record, committed_at=record.committed_at + timedelta(hours=1), replies=())
        assert store.commit_round(run_id, later)
    fresh = SqlRunStore(store._sessions.engine)
    assert counters(render(store)) == counters(render(fresh))


def test_an_ended_run_is_not_read_again(store: SqlRunStore) -> None:
    run_id, asked = a_run(store), list[str]()
    store.transition(run_id, RunStatus.COMPLETED, expected=[RunStatus.RUNNING], reason="done")
    collector = RunCollector(lambda: Counted(store.tallies(), asked))
    first, second = list(collector.collect()), list(collector.collect())
    assert asked == [run_id]
    assert len(first) == len(second)


class Counted:
    """Notes of which runs more than the overview is read."""

    def __init__(self, inner: Tallies, asked: list[str]) -> None:
        self.overview, self._increment, self._asked = inner.overview, inner.increment, asked

    def increment(self, run_id: str, mark: Mark | None, event_id: int) -> Increment:
        self._asked.append(run_id)
        return self._increment(run_id, mark, event_id)


def test_a_scrape_does_not_wait_for_runs_that_take_long_to_read(store: SqlRunStore) -> None:
    run_id, may_read = a_run(store, steps=2), threading.Event()

    class Slow(Counted):
        def increment(self, run_id: str, mark: Mark | None, event_id: int) -> Increment:
            assert may_read.wait(60)
            return super().increment(run_id, mark, event_id)

    collector = RunCollector(lambda: Slow(store.tallies(), []))

    def found(name: str) -> list[float]:
        families = {family.name: family.samples for family in collector.collect()}
        return [sample.value for sample in families[f"perennial_{name}"]]

    assert found("scrape_pending_runs") == [1]
    assert found("run_info") == []
    may_read.set()
    while found("scrape_pending_runs") == [1]:
        pass
    assert found("run_info") == [1]
    assert run_id in str(list(collector.collect()))


def test_labels_stay_few(store: SqlRunStore) -> None:
    oldest = a_run(store, steps=3)  # and under way
    for _ in range(RECENT_RUNS + 5):
        run_id = a_run(store, steps=3)
        store.transition(run_id, RunStatus.COMPLETED, expected=[RunStatus.RUNNING], reason="done")
    text = render(store)
    runs = {dict(labels).get("run") for _, labels in values(text)} - {None}
    assert len(runs) == RECENT_RUNS + 1
    assert oldest in runs
    assert value(text, "runs", status="completed") == RECENT_RUNS + 5
    for private in (*CLIENTS, "encoder.layer", "attention"):
        assert private not in text.decode()


def test_only_what_the_catalog_names_is_exported(store: SqlRunStore) -> None:
    a_run(store)
    known = {each.series: each for each in catalog.ALL}
    exported = list(text_string_to_metric_families(render(store).decode()))
    names = {family.name + ("_total" if family.type == "counter" else "") for family in exported}
    assert names == set(known)
    for family in exported:
        spec = known[family.name + ("_total" if family.type == "counter" else "")]
        assert family.type == spec.kind
        for sample in family.samples:
            assert sample.labels.keys() - {"le"} == set(spec.labels)


def test_names_have_base_units_and_are_documented() -> None:
    for spec in catalog.ALL:
        assert re.fullmatch(r"perennial_[a-z_]+[a-z]", spec.series)
        assert not re.search(r"_(ms|millis|minutes|kb|mb|percent)(_|$)", spec.series)
        assert spec.help.endswith(".")


def test_a_database_that_is_away_is_told_not_raised(tmp_path: Path) -> None:
    engine = make_engine("postgresql://nobody@127.0.0.1:1/none?connect_timeout=1")
    away = SqlRunStore(engine, Patience(limit_seconds=60))
    began = time.monotonic()
    assert set(values(render_once(away))) == {("perennial_database_up", ())}
    assert value(render_once(away), "database_up") == 0
    assert time.monotonic() - began < 20


def test_what_cannot_be_opened_is_told_too() -> None:
    def closed() -> Tallies:
        raise StoreError("no such folder")

    [family] = RunCollector(closed).collect()
    assert [sample.value for sample in family.samples] == [0]


def test_scrapes_at_once_agree(store: SqlRunStore) -> None:
    a_run(store)
    with ThreadPoolExecutor(4) as pool:
        texts = list(pool.map(lambda _: counters(render(store)), range(4)))
    assert all(text == texts[0] for text in texts)


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not installed")
def test_promtool_has_nothing_to_say(store: SqlRunStore) -> None:
    a_run(store)
    found = subprocess.run(
        ["promtool", "check", "metrics"], input=render(store), capture_output=True, check=False
    )
    assert (found.returncode, found.stdout, found.stderr) == (0, b"", b"")
