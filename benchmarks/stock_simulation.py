"""The stock app of ``benchmarks/stock`` as ``flwr run`` simulates it, and how long it took.

``flwr run`` starts a SuperLink of its own that outlives the command: Flower's home, its port and
every process it has started belong to one measurement here, and are ended with it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import psutil
import tomli_w

from orchestrator.deployment.flower import a_free_port, flower_environment
from orchestrator.deployment.processes import end_all, wait_until

_APP: Final = Path(__file__).parent / "stock"
_PATIENCE_SECONDS: Final = 900.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is simulated: the work of ``clients`` on every ``clients``-th line of a JSONL file."""

    model: str
    train_file: Path
    clients: int = 20
    rounds: int = 3
    local_steps: int = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Seconds of one simulation.

    ``rounds`` are from one aggregated state to the next (ours: from commit to commit);
    ``compute`` and ``training`` are the sums, over all clients of a round, of what the client's
    handler took and of its optimizer loop alone; ``first_step`` and ``total`` count from the
    command.
    """

    first_step: float
    total: float
    rounds: tuple[float, ...]
    compute: tuple[float, ...]
    training: tuple[float, ...]

    def share(self, spent: tuple[float, ...], cores: int) -> float:
        """Of cores × wall of all rounds, what ``spent`` adds up to."""
        return sum(spent) / (cores * sum(self.rounds))


def stock(job: Job) -> Timings:
    """One ``flwr run`` of the stock app, one CPU per client.

    Raises: TimeoutError if it does not end.
    """
    with TemporaryDirectory() as name:
        folder = Path(name)
        config: Mapping[str, Any] = {
            "model": job.model,
            "train-file": str(job.train_file),
            "num-rounds": job.rounds,
            "local-steps": job.local_steps,
            "timings": str(folder),
        }
        (folder / "run.toml").write_text(tomli_w.dumps(config))
        begun = time.time()
        with _flower(folder) as environment:
            command = [
                str(Path(sys.executable).parent / "flwr"), "run", str(_APP),
                "--run-config", str(folder / "run.toml"), "--federation-config",
                f"num-supernodes={job.clients} client-resources-num-cpus=1",
            ]  # fmt: skip
            subprocess.run(  # noqa: S603 - Flower's own command
                command, env=environment, cwd=folder, check=True, stdout=subprocess.DEVNULL
            )
            if not wait_until((folder / "server.json").exists, _PATIENCE_SECONDS):
                raise TimeoutError(f"the stock app has not ended in {_PATIENCE_SECONDS:g} s")
            ended = time.time()
            return _timings(folder, job, begun, ended)


def _timings(folder: Path, job: Job, begun: float, ended: float) -> Timings:
    """``server.json`` has the time before the first round and after each; clients write lines."""
    stamps = json.loads((folder / "server.json").read_text())
    lines = [
        [json.loads(line) for line in path.read_text().splitlines()]
        for path in sorted(folder.glob("client-*.jsonl"))
    ]
    by_round = list(zip(*lines, strict=True))
    if len(lines) != job.clients or len(by_round) != job.rounds:
        raise RuntimeError(f"{len(lines)} clients took part, expected {job.clients}")
    return Timings(
        first_step=min(line["start"] for line in by_round[0]) - begun,
        total=ended - begun,
        rounds=tuple(after - before for before, after in pairwise(stamps)),
        compute=tuple(sum(x["end"] - x["begun"] for x in each) for each in by_round),
        training=tuple(sum(x["end"] - x["start"] for x in each) for each in by_round),
    )


@contextmanager
def _flower(folder: Path) -> Iterator[dict[str, str]]:
    """The environment of a Flower of our own; what runs in it is ended afterwards."""
    port = {"FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(a_free_port()), "HF_HUB_OFFLINE": "1"}
    environment = flower_environment(folder / "flwr", port)
    try:
        yield environment
    finally:
        end_all(list(_living_in(environment["FLWR_HOME"])), grace_seconds=5.0)


def _living_in(flower_home: str) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        try:
            if process.environ().get("FLWR_HOME") == flower_home:
                yield process
        except psutil.Error:
            continue
