"""``flwr run .``: the same project as an ordinary Flower App, in a Flower home of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import tomli_w

from orchestrator.deployment.flower import a_free_port
from orchestrator.home import Home
from orchestrator.store.base import RunStatus
from tests.conftest import REPOSITORY, TINY

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


@pytest.fixture
def flower(tmp_path):
    """Environment of an isolated, offline Flower; its SuperLink is ended afterwards."""
    environment = os.environ | {
        "FLWR_HOME": str(tmp_path / "flwr"),
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(a_free_port()),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "PERENNIAL_HOME": str(tmp_path / "home"),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    environment.pop("PERENNIAL_DATABASE", None)
    yield environment
    for process in psutil.process_iter():
        try:
            if process.environ().get("FLWR_HOME") == environment["FLWR_HOME"]:
                process.kill()
        except psutil.Error:
            continue


def test_the_project_is_a_flower_app(flower, tmp_path):
    run_config = tmp_path / "run.toml"
    run_config.write_text(tomli_w.dumps({"config": json.dumps(TINY)}))
    command = [
        "flwr", "run", str(REPOSITORY), "--run-config", str(run_config),
        "--federation-config", "num-supernodes=3 client-resources-num-cpus=1",
    ]  # fmt: skip
    submitted = subprocess.run(
        command, env=flower, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    folder = Path(flower["PERENNIAL_HOME"])
    home = Home(folder=folder, database_url=f"sqlite:///{folder / 'perennial.db'}")
    deadline, runs = time.monotonic() + 180, []
    while time.monotonic() < deadline:
        runs = home.store().list_runs()
        if runs and runs[0].ended_at:
            break
        time.sleep(0.5)
    assert runs, submitted.stdout + submitted.stderr
    assert runs[0].status is RunStatus.COMPLETED, runs[0].reason
    assert runs[0].progress["acc"] > 0
