"""The shape of the house: who may import whom, what is cheap to import, what is shipped."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from orchestrator.config import load_config
from orchestrator.examples import NAMES, example_text
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


@pytest.mark.parametrize("name", NAMES)
def test_examples_are_valid_run_files(name):
    config = load_config(REPOSITORY / "examples" / f"{name}.toml")
    assert config.name == name
    assert tomllib.loads(example_text(name))["name"] == name


def test_every_dependency_is_bounded_and_imported():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    modules = {"scikit-learn": "sklearn", "pillow": "PIL", "annotated-types": "annotated_types"}
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
