"""Runs mirrored to a tracking server: once each, whatever fails, and never in the run's way."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from orchestrator import tracking
from orchestrator.conduct import submit
from orchestrator.home import Home
from orchestrator.store import SqlRunStore, open_store
from orchestrator.store.base import RunRecord, RunStatus
from orchestrator.summary import show
from orchestrator.tracking.mirror import BEHIND, CAUGHT_UP, Mirror
from orchestrator.tracking.points import metrics_of, params_of
from orchestrator.tracking.server import URL_VARIABLE, Point
from strategies.errors import ConfigError
from tests.conftest import tiny_config
from tests.orchestrator.recorded_run import recorded_run
from tests.orchestrator.test_telemetry import a_run, commit


class Shelf:
    """A tracker that keeps what it is told, and is away while ``away`` is set."""

    def __init__(self) -> None:
        self.points = list[Point]()
        self.through, self.ended = -1, list[tuple[RunStatus, list[str]]]()
        self.away, self.asked = False, threading.Event()

    def _answer(self) -> None:
        self.asked.set()
        if self.away:
            raise ConnectionError("connection refused\nand a long story")

    def begin(self, run: RunRecord) -> int:
        self._answer()
        return self.through

    def log(self, points: Sequence[Point], through: int) -> None:
        self._answer()
        self.points += points
        self.through = through

    def end(self, run: RunRecord, files: Mapping[str, Path]) -> None:
        self._answer()
        self.ended.append((run.status, sorted(files)))


@pytest.fixture
def store(tmp_path: Path) -> SqlRunStore:
    return open_store(f"sqlite:///{tmp_path / 'runs.db'}")


def a_mirror(store: SqlRunStore, run_id: str, shelf: Shelf, tmp_path: Path) -> Mirror:
    report = tmp_path / "report.html"
    return Mirror(run_id=run_id, store=store, tracker=shelf, report=report, look_seconds=0.01)


def kinds(store: SqlRunStore, run_id: str) -> list[str]:
    return [event.kind for event in store.events(run_id) if event.kind.startswith("tracking")]


def test_every_step_and_every_row_of_the_matrix_is_mirrored(store, tmp_path):
    run_id, shelf = a_run(store), Shelf()
    a_mirror(store, run_id, shelf, tmp_path).catch_up()
    _, rounds, _ = recorded_run()
    assert shelf.through == rounds[-1].step_index
    assert {point.step for point in shelf.points} == {record.step_index for record in rounds}
    shown = show(store.get_run(run_id), store.rounds(run_id), ())
    found = {(point.name, point.step): point.value for point in shelf.points}
    evaluations = [record.step_index for record in rounds if record.kind == "evaluate"]
    for row, step in zip(shown["accuracy_matrix"], evaluations, strict=True):
        for task, accuracy in enumerate(row):
            assert found[f"accuracy/task_{task}", step] == pytest.approx(accuracy)
    assert found["acc", evaluations[-1]] == pytest.approx(shown["acc"])
    assert found["train/loss", 1] == pytest.approx(rounds[1].metrics["loss"])
    assert found["bytes/up", 1] == sum(reply.bytes_up for reply in rounds[1].replies)
    assert found["clients/failed", 3] == 1
    assert all(math.isfinite(point.value) for point in shelf.points)


def test_a_resumed_run_goes_on_after_the_last_step_there(store, tmp_path):
    run_id, shelf = a_run(store, steps=9), Shelf()
    a_mirror(store, run_id, shelf, tmp_path).catch_up()
    commit(store, run_id, 9, 21)
    a_mirror(store, run_id, shelf, tmp_path).catch_up()  # another process, which has seen nothing
    whole = Shelf()
    a_mirror(store, run_id, whole, tmp_path).catch_up()
    assert sorted(shelf.points) == sorted(whole.points)


def test_what_failed_half_way_is_told_once(store, tmp_path):
    run_id, shelf = a_run(store), Shelf()
    mirror = a_mirror(store, run_id, shelf, tmp_path)
    told, count = shelf.log, 0

    def log(points: Sequence[Point], through: int) -> None:
        nonlocal count
        count += 1
        if count == 2:
            raise ConnectionError("gone")
        told(points, through)

    shelf.log = log
    with pytest.raises(ConnectionError):
        mirror.catch_up()
    mirror.catch_up()
    whole = Shelf()
    a_mirror(store, run_id, whole, tmp_path).catch_up()
    assert sorted(shelf.points) == sorted(whole.points)


def test_a_server_that_is_away_is_an_event_and_then_caught_up(store, tmp_path):
    run_id, shelf = a_run(store, steps=3), Shelf()
    shelf.away = True
    mirror = a_mirror(store, run_id, shelf, tmp_path)
    mirror.start()
    assert shelf.asked.wait(60)
    commit(store, run_id, 3, 9)
    while not mirror.behind:
        time.sleep(0.01)
    shelf.away = False
    while mirror.behind:
        time.sleep(0.01)
    mirror.close(60)
    assert shelf.through == 8
    assert kinds(store, run_id) == [BEHIND, CAUGHT_UP]
    [away] = [event.message for event in store.events(run_id) if event.kind == BEHIND]
    assert "connection refused; " in away
    assert "long story" not in away


def test_a_server_that_stays_away_leaves_advice(store, tmp_path):
    run_id, shelf = a_run(store, steps=3), Shelf()
    shelf.away = True
    mirror = a_mirror(store, run_id, shelf, tmp_path)
    mirror.start()
    mirror.close(60)
    assert kinds(store, run_id) == [BEHIND, BEHIND]
    assert f"`perennial mirror {run_id}`" in store.events(run_id)[-1].message
    shelf.away = False
    a_mirror(store, run_id, shelf, tmp_path).finish()
    assert shelf.through == 2


def test_a_server_that_hangs_holds_the_run_up_no_longer_than_said(store, tmp_path):
    run_id, shelf, forever = a_run(store, steps=1), Shelf(), threading.Event()
    shelf.begin = lambda run: forever.wait(300) or -1
    mirror = a_mirror(store, run_id, shelf, tmp_path)
    mirror.start()
    began = time.monotonic()
    mirror.close(0.2)
    assert time.monotonic() - began < 60
    assert "it took more than 0.2 s" in store.events(run_id)[-1].message
    forever.set()


def test_the_end_brings_report_adapter_and_status(store, tmp_path):
    run_id, shelf = a_run(store, steps=3), Shelf()
    (tmp_path / "adapter").mkdir()
    (tmp_path / "report.html").write_text("report")
    store.set_adapter_path(run_id, str(tmp_path / "adapter"))
    store.transition(run_id, RunStatus.COMPLETED, expected=[RunStatus.RUNNING], reason="done")
    a_mirror(store, run_id, shelf, tmp_path).finish()
    assert shelf.ended == [(RunStatus.COMPLETED, ["adapter", "report"])]


def test_params_are_the_leaves_of_the_run_file(store):
    run = store.get_run(a_run(store, steps=0))
    assert params_of(run)["federation.clients"] == "10"
    assert params_of(run)["learning.methods"] == '[{"name": "er"}]'
    assert params_of(run)["config_digest"] == "d"
    assert "federation.cohort" not in params_of(run)  # not set


def test_what_is_not_finite_is_not_told():
    _, rounds, _ = recorded_run()
    told = metrics_of(rounds[0])
    assert "loss" not in told
    assert all(map(math.isfinite, told.values()))


@pytest.mark.parametrize("given", ["mlflow", {"name": "mlflow"}])
def test_a_plain_name_is_short_for_a_table(given):
    assert tiny_config(tracking=given).tracking == tiny_config(tracking="mlflow").tracking
    assert tiny_config(tracking=given).tracking.experiment == "perennial"


def test_tracking_changes_nothing_about_what_is_computed():
    assert tiny_config(tracking="mlflow").digest() == tiny_config().digest()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("mlfow", "tracking.name"),
        ({"name": "mlflow", "url": "server:5000"}, "http:// or https:// URL"),
        ({"name": "mlflow", "url": "sqlite:///m.db"}, "http:// or https:// URL"),
        ({"name": "mlflow", "url": "http://me:secret@server"}, "MLFLOW_TRACKING_USERNAME"),
        ({"name": "mlflow", "uri": "http://server"}, "url"),
    ],
)
def test_faults_are_named(given, said):
    with pytest.raises(ConfigError, match=said):
        tiny_config(tracking=given)


def test_a_password_in_the_url_is_not_repeated():
    with pytest.raises(ConfigError) as caught:
        tiny_config(tracking={"name": "mlflow", "url": "http://me:secret@server"})
    assert "secret" not in str(caught.value)


def test_a_missing_library_is_said_before_a_run_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    monkeypatch.delenv(URL_VARIABLE, raising=False)
    home = Home(folder=tmp_path, database_url=f"sqlite:///{tmp_path / 'runs.db'}")
    with pytest.raises(ConfigError) as caught:
        submit(tiny_config(tracking="mlflow"), home)
    assert "pip install 'perennial[mlflow]'" in str(caught.value)
    assert URL_VARIABLE in str(caught.value)
    assert not home.store().list_runs()
