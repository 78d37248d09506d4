"""Seconds per round, efficiency and bytes of one small job: ours, pfl-research and NVFlare.

    python -m benchmarks.peers --model PATH_OF_MINILM --json - [--pfl-python PYTHON]
        [--nvflare-python PYTHON]

MiniLM with LoRA r = 8 on all linear modules, CLINC150's first domain dealt evenly to 20 clients,
all asked in 3 rounds of 4 local steps of 16, one thread per client, as many clients at once as
there are cores.  Every system runs in processes of its own, one system after the other,
``--repeats`` times in turn.  ``--pfl-python`` and ``--nvflare-python`` are interpreters that have
torch, transformers, peft and the peer (``benchmarks/README.md`` says how to make them); a peer that
cannot be imported there is reported as ``not_installed``, with the reason.

``round_seconds`` runs from the end of a round's last local training to that of the next: start-up
and the first round are left out.  ``efficiency`` is the sum of local training over cores x that
time.  ``bytes_per_round`` of ours are whole messages, from the run database; a peer's are the
tensors of what it sends, both ways, without any framing.  pfl-research simulates in shared memory:
its bytes are what a deployment of it would send.  All train with the checkpoint's dropout and pad
to the longest text of a batch, pfl-research to that of a client.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from benchmarks.clinc150 import data_settings, environment, options_of, run_once, traffic, write
from benchmarks.peers.job import Job
from strategies.cores import usable_cores

_ROOT: Final = Path(__file__).parents[2]
_TIMEOUT_SECONDS: Final = 1200.0
Command = Callable[[str, Job], list[str]]


def _pfl(python: str, job: Job) -> list[str]:
    workers = ["-m", "torch.distributed.run", "--nproc-per-node", str(job.processes)]
    return [python, *workers, "-m", "benchmarks.peers.pfl_lora"]


def _nvflare(python: str, job: Job) -> list[str]:
    return [python, "-m", "benchmarks.peers.nvflare_lora"]


PEERS: Final[Mapping[str, Command]] = {"pfl": _pfl, "nvflare": _nvflare}


def ours(job: Job, settings: Sequence[str]) -> dict[str, Any]:
    """The job through ``perennial run`` on Ray."""
    shown, rounds = run_once(
        "peers",
        [
            *settings,
            "model.config={}",  # the checkpoint's dropout
            f"federation.clients={job.clients}",
            f"federation.cohort={job.clients}",
            f"learning.rounds_per_task={job.rounds}",
            f"learning.local_steps={job.local_steps}",
            f"strategy.rank.rank={job.rank}",
            'learning.methods=[{name="finetune"}]',
            'partition.kind="iid"',
        ],
    )
    trained = [record for record in rounds if record.kind == "train"]
    lengths = [
        (after.committed_at - before.committed_at).total_seconds()
        for before, after in pairwise(trained)
    ]
    busy = [sum(reply.seconds["train"] for reply in record.replies) for record in trained[1:]]
    bytes_per_round = sum(traffic(trained).values()) / len(trained)
    return {
        **_round(lengths, busy),
        "bytes_per_round": bytes_per_round,
        "wall_seconds": shown["wall_seconds"],
    }


def theirs(name: str, python: str, job: Job) -> dict[str, Any]:
    """The job through a peer's program.

    Raises: RuntimeError with the end of what it said, if it fails.
    """
    with TemporaryDirectory() as folder:
        timings = Path(folder) / "timings"
        timings.mkdir()
        own = Job(**{**_fields(job), "timings": str(timings)})
        own.write(path := Path(folder) / "job.json")
        done = subprocess.run(  # noqa: S603
            [*PEERS[name](python, own), str(path)],
            cwd=_ROOT,
            env=os.environ | {"PYTHONPATH": str(_ROOT), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
            timeout=_TIMEOUT_SECONDS,
        )
        if done.returncode:
            raise RuntimeError(f"{name}: exit {done.returncode}\n{done.stderr[-2000:]}")
        return _read(timings, job)


def _read(timings: Path, job: Job) -> dict[str, Any]:
    lines = [
        [json.loads(line) for line in path.read_text().splitlines()]
        for path in sorted(timings.glob("client-*.jsonl"))
    ]
    rounds = list(zip(*lines, strict=True))
    ends = [max(line["end"] for line in trained) for trained in rounds]
    busy = [sum(line["end"] - line["start"] for line in trained) for trained in rounds[1:]]
    sent = json.loads((timings / "sent.json").read_text())["message_bytes"]
    lengths = [after - before for before, after in pairwise(ends)]
    return {**_round(lengths, busy), "bytes_per_round": 2 * sent * job.clients}


def _fields(job: Job) -> dict[str, Any]:
    return {name: getattr(job, name) for name in job.__dataclass_fields__}


def _round(lengths: Sequence[float], busy: Sequence[float]) -> dict[str, float]:
    return {
        "round_seconds": statistics.median(lengths),
        "efficiency": sum(busy) / (usable_cores() * sum(lengths)),
    }


def why_not(python: str, module: str) -> str | None:
    """Why the interpreter cannot run the peer; None if it can."""
    try:
        done = subprocess.run(  # noqa: S603
            [python, "-c", f"import peft, transformers, {module}"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    except OSError as error:
        return str(error)
    return done.stderr.strip().splitlines()[-1] if done.returncode else None


def summary(runs: Mapping[str, Sequence[Mapping[str, float]]]) -> dict[str, Any]:
    """Per system the median of every figure, and ours over the peer's with its spread."""
    found: dict[str, Any] = {
        name: {key: statistics.median(run[key] for run in rows) for key in rows[0]}
        for name, rows in runs.items()
    }
    for name, rows in runs.items():
        if name == "ours":
            continue
        for key in ("round_seconds", "bytes_per_round"):
            ratios = [mine[key] / row[key] for mine, row in zip(runs["ours"], rows, strict=False)]
            found[name][f"ours_over_{key}"] = statistics.median(ratios)
            found[name][f"ours_over_{key}_range"] = [min(ratios), max(ratios)]
    return found


def main() -> None:
    """Ours and every peer that is there, in turn; with ``--json FILE`` what is done is there."""
    parser = options_of(__doc__ or "")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clients", type=int, default=20)
    for name in PEERS:
        variable = f"{name.upper()}_PYTHON"
        default = os.environ.get(variable, sys.executable)
        parser.add_argument(f"--{name}-python", default=default, help=f"default: ${variable}")
    options = parser.parse_args()
    wanted = [name for name in PEERS if not options.only or name in options.only]
    pythons = {name: getattr(options, f"{name}_python") for name in wanted}
    missing = {name: why for name in wanted if (why := why_not(pythons[name], name))}
    runs: dict[str, list[dict[str, Any]]] = {
        name: [] for name in ("ours", *wanted) if name not in missing
    }
    with TemporaryDirectory() as folder:
        data = data_settings(1, Path(folder))
        job = Job(
            model=options.model,
            train_file=str(Path(folder) / "train.jsonl"),
            timings=folder,
            clients=options.clients,
            rounds=options.rounds,
            processes=usable_cores(),
        )
        common = [f'model.name="{options.model}"', *data, *options.set]
        for seed in range(options.repeats):
            for name, rows in runs.items():
                rows.append(
                    ours(job, [*common, f"seed={seed}"])
                    if name == "ours"
                    else theirs(name, pythons[name], job)
                )
                if options.json != "-":
                    write(_result(runs, missing, job), options.json)
    if options.json == "-":
        write(_result(runs, missing, job), options.json)


def _result(
    runs: Mapping[str, Sequence[Mapping[str, float]]], missing: Mapping[str, str], job: Job
) -> dict[str, Any]:
    paths = {"model": "MiniLM", "train_file": "", "timings": ""}
    return {
        "systems": summary({name: rows for name, rows in runs.items() if rows}),
        "not_installed": missing,
        "job": _fields(job) | paths,
        "runs": runs,
        **environment(),
    }


if __name__ == "__main__":
    sys.exit(main())
