"""The benchmark suite: nothing left out, all of it explained, and a fault is named."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.__main__ import command_of, run_all
from benchmarks.cases import CASES, Figure
from benchmarks.table import as_markdown

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "benchmarks"
README = (FOLDER / "README.md").read_text()


def commands():
    """Modules of the folder that are commands, by the name after ``benchmarks.``."""
    files = [*FOLDER.glob("*.py"), *FOLDER.glob("*/__main__.py")]
    found = {path for path in files if 'if __name__ == "__main__":' in path.read_text()}
    inner = {path.parent.name for path in found if path.parent != FOLDER}
    return inner | {path.stem for path in found if path.parent == FOLDER} - {"__main__"}


def section(name):
    found = re.search(rf"^## `{name}`\n(.*?)(?=^## |\Z)", README, flags=re.MULTILINE | re.DOTALL)
    assert found, f"benchmarks/README.md has no section on {name}"
    return found[1]


def test_every_benchmark_is_a_case_of_the_suite():
    assert set(CASES) == commands()


@pytest.mark.parametrize("name", CASES)
def test_every_number_is_explained(name):
    text = section(name)
    assert f"python -m benchmarks.{name}" in text
    for figure in CASES[name].figures:
        row = re.search(rf"^\| `{re.escape(figure.name)}` \|.*$", text, flags=re.MULTILINE)
        assert row, figure.name
        assert not figure.target or figure.target in row[0], row[0]


@pytest.mark.parametrize("name", CASES)
def test_a_case_gets_what_it_can_read(name, tmp_path):
    command = command_of(name, CASES[name], "/a/model", tmp_path / "out.json")
    module = "".join(command[2]).removeprefix("benchmarks.")
    source = FOLDER / f"{module}.py"
    text = (source if source.exists() else FOLDER / module / "__main__.py").read_text()
    own = set(re.findall(r'"(--[a-z-]+)"', text))
    shared = set(re.findall(r'"(--[a-z-]+)"', (FOLDER / "clinc150.py").read_text()))
    known = own | (shared if "options_of" in text else set())
    assert {word for word in command[3:] if word.startswith("--")} <= known


def test_a_failing_case_is_named_and_the_others_go_on(tmp_path):
    first, second, third = list(CASES)[:3]
    wrong = "import sys; print('what went wrong'); sys.exit(3)"
    right = "import pathlib, sys; pathlib.Path(sys.argv[1]).write_text('{\"seeds\": [7]}')"
    results = run_all(
        {
            first: [sys.executable, "-c", wrong],
            second: [sys.executable, "-c", right, str(tmp_path / f"{second}.json")],
            third: [sys.executable, "-c", "pass"],  # ends well and writes nothing
        },
        tmp_path,
    )
    assert results["cases"][first]["failed"] == "exit 3"
    assert results["cases"][second]["result"] == {"seeds": [7]}
    assert "failed" in results["cases"][third]
    assert json.loads((tmp_path / "results.json").read_text())["cases"].keys() == {
        first, second, third,
    }  # fmt: skip
    text = (tmp_path / "results.md").read_text()
    assert f"**{first} failed** (exit 3)" in text
    assert "what went wrong" in text


def test_the_table_judges_by_the_target():
    below, above = Figure("a|b.c", "", "<= 0.05"), Figure("a|d", "", ">= 2")
    result = {"a": {"b.c": 0.05, "d": 1}}
    assert (below.of(result), above.of(result)) == (0.05, 1.0)
    assert below.met(0.05)
    assert not below.met(0.051)
    assert not above.met(1.0)
    assert Figure("a|missing", "").of(result) is None


def test_a_case_that_lacks_a_figure_is_not_said_to_have_met_its_target():
    name = next(name for name, case in CASES.items() if any(f.target for f in case.figures))
    machine = {
        "processor": "p", "cores": 2, "memory_bytes": 2**30, "system": "s", "load": 0.0,
    }  # fmt: skip
    outcome = {"seconds": 1.0, "command": [], "result": {}}
    results = {"at": "", "machine": machine, "versions": {}, "cases": {name: outcome}}
    text = as_markdown(results)
    assert "not measured" in text
    assert "met" not in re.findall(r"\| (met|\*\*missed\*\*) \|", text)


def test_the_list_names_every_case():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--list"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert set(CASES) <= set(re.findall(r"^(\w+):", done.stdout, flags=re.MULTILINE))
