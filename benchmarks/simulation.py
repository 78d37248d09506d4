"""The same work simulated on one machine: ours, ours on the top two blocks, a stock Flower app.

    python -m benchmarks.simulation --json -

MiniLM on CLINC150 as one task, dealt out evenly over 20 clients; three rounds of all of them, four
local steps of 16, LoRA r = 8 on all linear modules, one CPU per client.  Ours is ``perennial run``,
the stock app (``benchmarks/stock``: the model is built in the handler, ``FedAvg`` of whole
adapters) is what ``flwr run`` simulates.  The cases take turns.

A round lasts from one aggregated state to the next, with us from commit to commit.
``efficiency`` is what clients spent in their handlers over cores × wall of all rounds, ``training``
their optimizer loops alone: 1 would mean that no core ever waited.  Ratios are of medians over the
repetitions.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from benchmarks.clinc150 import RUN_FILE, a_model, environment, options_of, write
from benchmarks.stock_simulation import Job, Timings, stock
from orchestrator.deployment.flower import QUIET
from orchestrator.home import Home
from orchestrator.store.base import RoundRecord
from strategies.cores import usable_cores

_DATA: Final = Path(__file__).parent.parent / "data" / "clinc150"
_TOP_TWO: Final = ('strategy.layer_selection.name="top"', "strategy.layer_selection.blocks=2")


def one_task(folder: Path) -> list[str]:
    """CLINC150 as one task, in ``folder``; the settings that read it.

    All of its training examples, and one test example per class: the stock app scores nothing.
    """
    settings = []
    for split in ("train", "test"):
        rows = [json.loads(line) for line in (_DATA / f"{split}.jsonl").read_text().splitlines()]
        if split == "test":
            rows = list({row["label"]: row for row in rows}.values())
        path = folder / f"{split}.jsonl"
        path.write_text("".join(json.dumps({**row, "domain": "all"}) + "\n" for row in rows))
        settings.append(f'data.{split}="{path}"')
    return settings


def ours(job: Job, settings: Sequence[str]) -> Timings:
    """One ``perennial run`` in a data directory of its own.

    Raises: CalledProcessError if the run does not end well.
    """
    words = [word for setting in (*_settings(job), *settings) for word in ("--set", setting)]
    command = [str(Path(sys.executable).parent / "perennial"), "run", str(RUN_FILE), *words]
    with TemporaryDirectory() as name:
        home = Home(folder=Path(name), database_url=f"sqlite:///{name}/perennial.db")
        variables = os.environ | QUIET | home.environment() | {"HF_HUB_OFFLINE": "1"}
        begun = time.time()
        subprocess.run(command, env=variables, check=True, stdout=subprocess.DEVNULL)  # noqa: S603
        ended, store = time.time(), home.store()
        (run,) = store.list_runs()
        records = store.rounds(run.run_id)
        trained = [record for record in records if record.kind == "train"]
        return Timings(
            first_step=_first_step(home, run.run_id, trained[0].step_index) - begun,
            total=ended - begun,
            rounds=tuple(_walls(records)),
            compute=tuple(_spent(record, "compute") for record in trained),
            training=tuple(_spent(record, "train") for record in trained),
        )


def _settings(job: Job) -> list[str]:
    return [
        f'model.name="{job.model}"',
        f'data.train="{job.train_file}"',
        'partition.kind="iid"',
        f"federation.clients={job.clients}",
        f"federation.cohort={job.clients}",
        f"learning.rounds_per_task={job.rounds}",
        f"learning.local_steps={job.local_steps}",
        'learning.methods=[{name="finetune"}]',
    ]


def _first_step(home: Home, run_id: str, step: int) -> float:
    """When the first client of a step had its tensors in place, which is just before it trains."""
    files = (home.client_folder / run_id).glob(f"*/received-{step:08d}.safetensors")
    return min(path.stat().st_mtime for path in files)


def _walls(records: Sequence[RoundRecord]) -> Iterator[float]:
    """From commit to commit: planning and whatever else lies between two rounds is part of it."""
    for before, after in pairwise(records):
        if after.kind == "train":
            yield (after.committed_at - before.committed_at).total_seconds()


def _spent(record: RoundRecord, phase: str) -> float:
    return sum(reply.seconds.get(phase, 0.0) for reply in record.replies)


def measured(cases: dict[str, Callable[[], Timings]], repeats: int) -> dict[str, list[Timings]]:
    """Every case so many times, taking turns."""
    found: dict[str, list[Timings]] = {name: [] for name in cases}
    for number in range(repeats):
        for name, case in cases.items():
            at = datetime.now(UTC)
            print(f"{at:%H:%M:%S} {name} {number + 1}/{repeats}", file=sys.stderr, flush=True)
            found[name].append(case())
    return found


def summary(found: dict[str, list[Timings]], cores: int) -> dict[str, Any]:
    """Medians of every case with all values beside them, and ratios to the stock app's."""
    document: dict[str, Any] = {
        name: {
            "efficiency": statistics.median(t.share(t.compute, cores) for t in timings),
            "training": statistics.median(t.share(t.training, cores) for t in timings),
            "rounds_wall_seconds": statistics.median(sum(t.rounds) for t in timings),
            "total_seconds": statistics.median(t.total for t in timings),
            "all": [asdict(t) for t in timings],
        }
        for name, timings in found.items()
    }
    for name in set(document) - {"stock"} if "stock" in document else ():
        for figure in ("rounds_wall_seconds", "total_seconds"):
            ratio = document[name][figure] / document["stock"][figure]
            document[name][f"{figure.removesuffix('_seconds')}_ratio"] = ratio
    return document


def main() -> None:
    """All cases in turn."""
    parser = options_of(__doc__ or "", model=a_model())
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    with TemporaryDirectory() as name:
        settings = [*one_task(folder := Path(name)), *options.set]
        job = Job(model=options.model, train_file=folder / "train.jsonl")
        cases: dict[str, Callable[[], Timings]] = {
            "ours.full": lambda: ours(job, settings),
            "ours.top2": lambda: ours(job, [*settings, *_TOP_TWO]),
            "stock": lambda: stock(job),
        }
        wanted = {name: cases[name] for name in options.only or cases}
        document = summary(measured(wanted, options.repeats), usable_cores())
    write({**document, **environment()}, options.json)


if __name__ == "__main__":
    sys.exit(main())
