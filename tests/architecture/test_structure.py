"""The shape of the house: who may import whom, what is cheap to import, what is shipped."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from orchestrator.config import load_config
from orchestrator.examples import NAMES, example_text
from strategies.catalog import AGGREGATORS, KINDS
from tests.conftest import REPOSITORY


def test_import_rules_hold():
    pytest.importorskip("importlinter")
    command = [str(Path(sys.executable).with_name("lint-imports"))]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    "module", ["orchestrator.server_app", "orchestrator.cli", "clients.client_app"]
)
def test_importing_an_entry_point_loads_no_torch(module):
    code = f"import {module}, sys; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=False)
    assert done.returncode == 0


def test_help_waits_for_neither_database_nor_run_file():
    heavy = {"sqlalchemy", "alembic", "pydantic", "flwr", "ray", "scipy"}
    code = f"import orchestrator.cli, sys; print(sorted({heavy} & sys.modules.keys()))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, check=True, capture_output=True, text=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", NAMES)
def test_examples_are_valid_run_files(name):
    config = load_config(REPOSITORY / "examples" / f"{name}.toml")
    assert config.name == name
    assert tomllib.loads(example_text(name))["name"] == name


def test_every_dependency_is_bounded_and_imported():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    modules = {
        "scikit-learn": "sklearn",
        "pillow": "PIL",
        "annotated-types": "annotated_types",
        "grpcio": "grpc",
        "grpcio-health-checking": "grpc_health",
        "protobuf": "google.protobuf",
    }
    source = "\n".join(
        path.read_text()
        for package in ("orchestrator", "clients", "strategies")
        for path in (REPOSITORY / package).rglob("*.py")
    )
    for requirement in project["dependencies"]:
        name = requirement.split(">")[0].split("[")[0]
        assert ">=" in requirement, requirement
        assert "<" in requirement, requirement
        module = modules.get(name, name.replace("-", "_"))
        assert f"import {module}" in source or f"from {module}" in source, f"{name} is not used"


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_strategy_has_a_row_in_the_docs(kind):
    rows = _rows_of_the_docs()
    for name in KINDS[kind]:
        (row,) = (
            cells
            for cells in rows
            if cells[0] == f"`{name}`" and cells[-1] == SECTIONS[kind] and cells[1] not in _FLAGS
        )
        assert len(row) == 6, f"{name}: {row}"
        assert all(row)


def test_the_docs_say_what_aggregators_can_do():
    table = {row[0].strip("`"): row[1:6] for row in _rows_of_the_docs() if row[1] in _FLAGS}
    assert table.keys() == AGGREGATORS.keys()
    for name, aggregator in AGGREGATORS.items():
        can = aggregator.capabilities
        facts = (
            can.exact,
            not can.needs_equal_rank,
            not can.needs_individual_updates,
            can.changes_base,
            can.keeps_gauge,
        )
        assert table[name] == ["yes" if fact else "no" for fact in facts], name


_FLAGS = ("yes", "no")
SECTIONS = {
    "layer-selection": "Layer selection",
    "rank": "Rank",
    "screening": "Screening",
    "aggregation": "Aggregation",
    "merging": "Merging",
    "compression": "Compression",
    "head": "Heads",
    "replay": "Replay",
    "replay-rounds": "Replay rounds",
    "client-method": "Client methods",
}


def _rows_of_the_docs() -> list[list[str]]:
    """Cells of every table row that begins with a name, and the section it is in."""
    rows, section = [], ""
    for line in (REPOSITORY / "docs" / "strategies.md").read_text().splitlines():
        if line.startswith("## "):
            section = line[3:]
        if line.startswith("| `"):
            rows.append([cell.strip() for cell in line.strip("|").split("|")] + [section])
    return rows
