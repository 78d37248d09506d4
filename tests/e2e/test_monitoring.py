"""A finished run, scraped by a real Prometheus and mirrored to a real MLflow server."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import yaml

from orchestrator.conduct import submit
from orchestrator.deployment.flower import a_free_port
from orchestrator.home import Home
from orchestrator.launch import run_in_process
from orchestrator.store.base import RunStatus
from orchestrator.summary import show
from orchestrator.tracking.mirror import BEHIND
from tests.conftest import REPOSITORY, tiny_config
from tests.deploy.test_monitoring import expressions

pytestmark = [pytest.mark.slow, pytest.mark.e2e]
WAIT_SECONDS = 240.0
MLFLOW = os.environ.get("PERENNIAL_MLFLOW") or shutil.which(
    "mlflow", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}"
)


@contextlib.contextmanager
def running(command: Sequence[str], log: Path, **environment: str) -> Iterator[None]:
    """A process and all it starts, ended with the block."""
    with log.open("w") as out:
        process = subprocess.Popen(
            command,
            stdout=out,
            stderr=subprocess.STDOUT,
            cwd=log.parent,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)} | environment,
            start_new_session=True,
        )
        try:
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def fetched(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=30) as answer:  # noqa: S310 - ours, on loopback
        return answer.read()


def answered(url: str, log: Path) -> bytes:
    """What ``url`` says once somebody listens there."""
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            return fetched(url)
        except (urllib.error.URLError, ConnectionError):
            assert time.monotonic() < deadline, log.read_text()[-2000:]
            time.sleep(0.2)


def a_home(tmp_path: Path) -> Home:
    return Home(folder=tmp_path / "home", database_url=f"sqlite:///{tmp_path / 'home' / 'runs.db'}")


@pytest.mark.skipif(not shutil.which("prometheus"), reason="prometheus is not installed")
def test_prometheus_scrapes_a_finished_run_and_answers(tmp_path):
    home, config = a_home(tmp_path), tiny_config()
    run_id = submit(config, home)
    assert run_in_process(run_id, config, home, on_progress=lambda: None) is RunStatus.COMPLETED
    shown = show(home.store().get_run(run_id), home.store().rounds(run_id), ())
    ours, theirs = a_free_port(), a_free_port()
    exporter = ["-c", "from orchestrator.cli import main; main()", "metrics", "--port", str(ours)]
    told = yaml.safe_load((REPOSITORY / "deploy/prometheus/prometheus.yaml").read_text())
    told["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    told["rule_files"] = [str(REPOSITORY / "deploy/prometheus/rules.yaml")]
    told["scrape_configs"][0]["static_configs"][0]["targets"] = [f"127.0.0.1:{ours}"]
    (tmp_path / "prometheus.yaml").write_text(yaml.safe_dump(told))
    prometheus = [
        "prometheus", f"--config.file={tmp_path}/prometheus.yaml",
        f"--storage.tsdb.path={tmp_path}/tsdb", f"--web.listen-address=127.0.0.1:{theirs}",
    ]  # fmt: skip

    def query(expression: str) -> list[dict]:
        asked = urllib.parse.urlencode({"query": expression})
        answer = json.loads(fetched(f"http://127.0.0.1:{theirs}/api/v1/query?{asked}"))
        assert answer["status"] == "success"
        return answer["data"]["result"]

    def value(expression: str) -> float:
        deadline = time.monotonic() + WAIT_SECONDS
        while not (found := query(expression)):
            assert time.monotonic() < deadline, expression
            time.sleep(0.5)
        [one] = found
        return float(one["value"][1])

    log = tmp_path / "exporter.log"
    with (
        running([sys.executable, *exporter], log, **home.environment()),
        running(prometheus, tmp_path / "prometheus.log"),
    ):
        answered(f"http://127.0.0.1:{ours}/metrics", log)
        answered(f"http://127.0.0.1:{theirs}/-/ready", tmp_path / "prometheus.log")
        assert value("perennial_database_up") == 1
        assert value('perennial_runs{status="completed"}') == 1
        run = f'{{run="{run_id}"}}'
        assert value(f'perennial_rounds_total{{run="{run_id}", kind="train"}}') == 4
        assert value(f"perennial_accuracy_ratio{run}") == pytest.approx(shown["acc"])
        bytes_up = f'perennial_bytes_total{{run="{run_id}", direction="up"}}'
        assert value(bytes_up) == shown["bytes_up"]
        assert value(f"histogram_quantile(0.5, perennial_rank_bucket{run})") <= 2
        for _, expression in expressions():  # all of them can be asked
            asked = expression.replace("$__rate_interval", "1m").replace("$run", ".*")
            query(asked)
        rules = json.loads(fetched(f"http://127.0.0.1:{theirs}/api/v1/rules"))
        health = {rule["health"] for group in rules["data"]["groups"] for rule in group["rules"]}
        assert health <= {"ok", "unknown"}


def the_mlflow_run(url: str, run_id: str):
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=url)
    experiment = client.get_experiment_by_name("perennial").experiment_id
    [found] = client.search_runs([experiment], f"tags.`perennial.run_id` = '{run_id}'")
    return client, found


@pytest.mark.skipif(
    not MLFLOW or importlib.util.find_spec("mlflow") is None,
    reason="no MLflow server here (`mlflow` or PERENNIAL_MLFLOW), or its library is missing",
)
@pytest.mark.filterwarnings("default")
def test_mlflow_has_the_run_though_it_was_away_while_it_ran(tmp_path):
    port, home = a_free_port(), a_home(tmp_path)
    url = f"http://127.0.0.1:{port}"
    config = tiny_config(tracking={"name": "mlflow", "url": url})
    run_id, server = submit(config, home), tmp_path / "server"
    server.mkdir()
    assert (
        run_in_process(run_id, config, home, on_progress=lambda: None) is RunStatus.COMPLETED
    )  # nobody listens yet
    behind = [event for event in home.store().events(run_id) if event.kind == BEHIND]
    assert f"`perennial mirror {run_id}`" in behind[-1].message
    command = [
        MLFLOW, "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        "--backend-store-uri", f"sqlite:///{server}/mlflow.db",
        "--artifacts-destination", str(server / "artifacts"),
    ]  # fmt: skip
    log = server / "mlflow.log"
    quiet = {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "PYTHONPATH": "",
    }
    with running(command, log, **quiet):
        answered(f"{url}/health", log)
        for _ in range(2):  # the second time nothing is left to be told
            mirror = ["-c", "from orchestrator.cli import main; main()", "mirror", run_id]
            environment = os.environ | home.environment()
            subprocess.run([sys.executable, *mirror], env=environment, cwd=REPOSITORY, check=True)
        client, found = the_mlflow_run(url, run_id)
        shown = show(home.store().get_run(run_id), home.store().rounds(run_id), ())
        assert found.info.status == "FINISHED"
        assert found.info.run_name == "tiny"
        assert found.data.params["federation.clients"] == "3"
        assert found.data.metrics["acc"] == pytest.approx(shown["acc"])
        losses = client.get_metric_history(found.info.run_id, "train/loss")
        assert len(losses) == 4  # each round once
        rows = client.get_metric_history(found.info.run_id, "accuracy/task_0")
        expected = [row[0] for row in shown["accuracy_matrix"]]
        assert [row.value for row in sorted(rows, key=lambda row: row.step)] == expected
        names = {item.path for item in client.list_artifacts(found.info.run_id)}
        assert names == {"adapter", "report"}
        adapter = {item.path for item in client.list_artifacts(found.info.run_id, "adapter")}
        assert "adapter/adapter_model.safetensors" in adapter
        live = submit(config, home)  # one that is mirrored while it runs
        assert run_in_process(live, config, home, on_progress=lambda: None) is RunStatus.COMPLETED
        _, found = the_mlflow_run(url, live)
        assert found.info.status == "FINISHED"
        assert BEHIND not in [event.kind for event in home.store().events(live)]
