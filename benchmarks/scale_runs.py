"""Small runs with any number of clients for ``benchmarks.scale``, and what they take."""

from __future__ import annotations

import json
import os
import statistics
import string
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, NamedTuple

from orchestrator.conduct import submit
from orchestrator.config import RunConfig, parse_config
from orchestrator.home import Home
from orchestrator.launch import Simulation
from orchestrator.store.base import RoundRecord, RunStatus
from strategies.rng import rng_for

MODULES_PER_BLOCK: Final = 6  # linear ones of an encoder block
_CLASSES_PER_TASK: Final = 2
_WORDS_PER_CLASS: Final = 12
_WORDS_PER_TEXT: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A run on made-up sentences with an encoder of next to no size.

    ``examples`` are dealt evenly for training; whoever holds one of the ``held_out`` is scored.
    """

    clients: int = 100
    cohort: int = 10
    blocks: int = 1
    rank: int = 2
    tasks: int = 2
    rounds_per_task: int = 2
    examples: int = 2_000
    held_out: int = 200
    transport: str = "in-process"

    def config(self, folder: Path) -> RunConfig:
        """The validated run file; its data is written to ``folder``."""
        return parse_config(
            {
                "name": f"scale-{self.clients}",
                "seed": 0,
                "model": _model(self.blocks),
                "data": {"source": "jsonl", **_written(self, folder)},
                "stream": {"kind": "class-incremental", "classes_per_task": _CLASSES_PER_TASK},
                "partition": {"kind": "iid"},
                "federation": {
                    "clients": self.clients,
                    "cohort": self.cohort,
                    "transport": self.transport,
                },
                "learning": {
                    "rounds_per_task": self.rounds_per_task,
                    "local_steps": 1,
                    "batch_size": 4,
                    "methods": [{"name": "er"}],
                },
                "replay": {"examples_per_client": 4},
                "strategy": {"rank": {"name": "fixed", "rank": self.rank}},
            }
        )


@dataclass(slots=True)
class Watched:
    """A run in a process of its own, watched from here; Linux tells what it takes.

    ``resident`` is by training round, in bytes, as the run had it when that round was committed;
    ``processor`` by number of committed steps, 0 from when all clients had introduced themselves,
    in seconds, which other work on the machine does not stretch.
    """

    run_id: str
    home: Home
    stop_after: int | None = None  # training rounds
    resident: dict[int, int] = field(default_factory=dict)
    processor: dict[int, float] = field(default_factory=dict)
    peak: int = 0
    seconds: float = 0.0

    @classmethod
    def run(cls, job: Job, home: Home) -> Watched:
        """Carry a job from its beginning to its end."""
        return cls(submit(job.config(home.folder), home), home).carry_on()

    def carry_on(self) -> Watched:
        """From where the run is to its end, or until it is to be stopped.

        Raises: RuntimeError if it ended otherwise.
        """
        simulation, start = Simulation.start(self.run_id, self.home), time.monotonic()
        status = simulation.watch(self._looking(simulation), every_seconds=0.1)
        self.seconds = time.monotonic() - start
        wanted = RunStatus.COMPLETED if self.stop_after is None else RunStatus.INTERRUPTED
        if status is not wanted:
            reason = self.home.store().get_run(self.run_id).reason
            raise RuntimeError(f"{self.run_id}: {status}: {reason}; see {simulation.log_path}")
        return self

    def rounds(self) -> list[RoundRecord]:
        """Its committed steps, without replies and scores."""
        steps = self.home.store().sums(self.run_id).steps
        return [step.record for step in steps]

    def round_seconds(self, first: int = 0) -> list[float]:
        """Between commits of neighbouring training rounds, from the ``first`` one on."""
        steps = self.rounds()[first:]
        return [
            (b.committed_at - a.committed_at).total_seconds()
            for a, b in pairwise(steps)
            if a.kind == b.kind == "train"
        ]

    def begun_seconds(self, step_index: int = 0) -> float:
        """From when the run was last set running before that step to the step's first message."""
        step = self.rounds()[step_index]
        begun = max(
            event.at
            for event in self.home.store().events(self.run_id)
            if event.data.get("status") == "running" and event.at < step.committed_at
        )
        return (step.committed_at - begun).total_seconds() - sum(step.seconds.values())

    def processor_between(self, first: int, last: int) -> float:
        """Seconds of processor time from one number of committed steps to another."""
        return self.processor[last] - self.processor[first]

    def traffic(self) -> int:
        """Bytes both ways, over the whole run."""
        progress = self.home.store().get_run(self.run_id).progress
        return int(progress["bytes_up"] + progress["bytes_down"])

    def _looking(self, simulation: Simulation) -> Callable[[], None]:
        store = self.home.store()

        def look() -> None:
            taken = taken_by(simulation.process.pid)
            if taken is None:
                return
            progress = store.get_run(self.run_id).progress
            done = int(progress.get("rounds", 0))
            self.peak = taken.peak
            self.resident.setdefault(done, taken.resident)
            if progress.get("phase") not in (None, "gathering clients"):
                self.processor.setdefault(int(progress["steps_done"]), taken.processor)
            if self.stop_after is not None and done >= self.stop_after:
                simulation.stop()

        return look


class Taken(NamedTuple):
    """What a process has taken: bytes in memory, now and at most, and processor seconds."""

    resident: int
    peak: int
    processor: float


def taken_by(pid: int) -> Taken | None:
    """None of a process that has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
        times = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    except FileNotFoundError:
        return None
    found = dict(line.split(":", 1) for line in lines)
    if "VmRSS" not in found:  # it has ended, and nobody has asked how
        return None
    now, peak = (int(found[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))
    ticks = int(times[11]) + int(times[12])  # user and system
    return Taken(resident=now, peak=peak, processor=ticks / os.sysconf("SC_CLK_TCK"))


def median(values: list[float]) -> float:
    """NaN of nothing."""
    return statistics.median(values) if values else float("nan")


def _model(blocks: int) -> dict[str, Any]:
    return {
        "task": "sequence-classification",
        "name": "from-config",
        "architecture": "bert",
        "tokenizer": "bytes",
        "pooling": "mean",
        "max_length": 24,
        "config": {
            "hidden_size": 32,
            "num_hidden_layers": blocks,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "max_position_embeddings": 32,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
        },
    }


def _written(job: Job, folder: Path) -> dict[str, str]:
    """The data files of a job, the same ones every time: three words of its class per sentence."""
    rng, letters = rng_for(0, "benchmarks", "scale"), list(string.ascii_lowercase)
    num_classes = job.tasks * _CLASSES_PER_TASK
    words = [
        ["".join(rng.choice(letters, 5)) for _ in range(_WORDS_PER_CLASS)]
        for _ in range(num_classes)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    paths = dict[str, str]()
    for split, count in (("train", job.examples), ("test", job.held_out)):
        path = folder / f"{split}-{count}-{job.tasks}.jsonl"
        rows = (
            {
                "text": " ".join(rng.choice(words[number % num_classes], _WORDS_PER_TEXT)),
                "label": f"class-{number % num_classes:02d}",
            }
            for number in range(count)
        )
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
        paths[split] = str(path)
    return paths
