"""Seconds per round beyond local training, on real processes: ours and a stock Flower app's.

    python -m benchmarks.deployment --model PATH_OF_MINILM --json -

One SuperLink and two SuperNodes on loopback without TLS, MiniLM with LoRA r = 8 on all linear
modules, CLINC150's first domain, one thread per client.  Ours is ``perennial server`` and two
``perennial client``; the stock app (``benchmarks/stock``) is what Flower's documentation teaches:
the model is built in the train handler and ``FedAvg`` averages whole adapters.  A round's overhead
is its length less the longer of the two local trainings; medians over all rounds but the first.
``model_loads`` is how often each of our trainers loaded the base model.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import tomli_w

from benchmarks.clinc150 import data_settings, environment, options_of, write
from clients.addresses import read_token
from clients.trainer_client import TrainerClient
from orchestrator.deployment.flower import QUIET, a_free_port
from orchestrator.deployment.processes import Program, Running, wait_until
from orchestrator.home import Home
from orchestrator.store.base import RunStatus

_ROOT: Final = Path(__file__).parent.parent
_BIN: Final = Path(sys.executable).parent
_CLIENTS: Final = 2
_PATIENCE_SECONDS: Final = 900.0


def ours(model: str, rounds: int, steps: int, data: Path) -> dict[str, Any]:
    """Our overhead per round, and how often each trainer loaded the model."""
    with TemporaryDirectory() as name, ExitStack() as stack:
        folder, port = Path(name), a_free_port()
        home = Home(folder=folder, database_url=f"sqlite:///{folder / 'perennial.db'}")
        variables = home.environment()

        def start(label: str, *words: object) -> Running:
            return stack.enter_context(_program(label, "perennial", words, folder, variables))

        address = f"127.0.0.1:{port}"
        server = start("server", "server", "--insecure", "--host", "127.0.0.1", "--port", port)
        _wait(lambda: any("submit with" in line for line in server.lines), server)
        works = [folder / f"client-{number}" for number in range(_CLIENTS)]
        for number, work in enumerate(works):
            start(
                work.name, "client", "--insecure", "--superlink", address, "--number", number,
                "--clients", _CLIENTS, "--data", data, "--work", work,
            )  # fmt: skip
        settings = [
            'data.train="train.jsonl"',
            'data.test="test.jsonl"',
            f'model.name="{model}"',
            f"federation.clients={_CLIENTS}",
            f"federation.cohort={_CLIENTS}",
            f"learning.rounds_per_task={rounds}",
            f"learning.local_steps={steps}",
            'learning.methods=[{name="finetune"}]',
        ]
        words = [word for setting in settings for word in ("--set", setting)]
        run = start(
            "run", "run", _ROOT / "examples" / "clinc150.toml", *words,
            "--on", address, "--insecure",
        )  # fmt: skip
        _wait(lambda: run.poll() is not None, run)
        overheads = _our_overheads(home)
        loads = [
            TrainerClient(
                f"unix:{work / 'trainer.sock'}", read_token(work / "trainer.token")
            ).status()
            for work in works
        ]
    return {
        "ours_overhead_seconds": statistics.median(overheads),
        "ours_overheads": overheads,
        "model_loads": [status.model_loads for status in loads],
    }


def _our_overheads(home: Home) -> list[float]:
    store = home.store()
    (run,) = store.list_runs()
    if run.status is not RunStatus.COMPLETED:
        raise RuntimeError(f"our run: {run.status}: {run.reason}")
    rounds = [record for record in store.rounds(run.run_id) if record.kind == "train"]
    return [
        (after.committed_at - before.committed_at).total_seconds()
        - max(reply.seconds["train"] for reply in after.replies)
        for before, after in pairwise(rounds)
    ]


def stock(model: str, rounds: int, steps: int, data: Path) -> dict[str, Any]:
    """The stock app's overhead per round."""
    with TemporaryDirectory() as name, ExitStack() as stack:
        folder, port = Path(name), a_free_port()
        address, variables = f"127.0.0.1:{port}", {"FLWR_HOME": str(folder / "flwr")}
        (folder / "flwr").mkdir()
        connection = {"default": "here", "here": {"address": address, "insecure": True}}
        (folder / "flwr" / "config.toml").write_text(tomli_w.dumps({"superlink": connection}))
        (folder / "run.toml").write_text(
            tomli_w.dumps(
                {
                    "model": model,
                    "train-file": str(data / "train.jsonl"),
                    "num-rounds": rounds,
                    "local-steps": steps,
                    "timings": str(folder),
                }
            )
        )

        def start(label: str, command: str, *words: object) -> Running:
            return stack.enter_context(_program(label, command, words, folder, variables))

        link = start(
            "superlink", "flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", port
        )
        _wait(lambda: any("running" in line.lower() for line in link.lines), link)
        for number in range(_CLIENTS):
            start(
                f"node-{number}", "flower-supernode", "--insecure", "--superlink", address,
                "--port", a_free_port(), "--node-config",
                f"partition-id={number} num-partitions={_CLIENTS}",
            )  # fmt: skip
        start(
            "run", "flwr", "run", _ROOT / "benchmarks" / "stock", "here",
            "--run-config", folder / "run.toml",
        )  # fmt: skip
        _wait((folder / "server.json").exists, link)
        overheads = _stock_overheads(folder)
    return {
        "stock_overhead_seconds": statistics.median(overheads),
        "stock_overheads": overheads,
    }


def _stock_overheads(folder: Path) -> list[float]:
    """``server.json`` has the time before the first round and after each."""
    stamps = json.loads((folder / "server.json").read_text())
    trained = [
        [json.loads(line) for line in path.read_text().splitlines()]
        for path in sorted(folder.glob("client-*.jsonl"))
    ]
    longest = [max(t["end"] - t["start"] for t in lines) for lines in zip(*trained, strict=True)]
    lengths = [after - before for before, after in pairwise(stamps)]
    return [length - train for length, train in zip(lengths, longest, strict=True)][1:]


@contextmanager
def _program(
    label: str, command: str, words: Sequence[object], folder: Path, variables: Mapping[str, str]
) -> Iterator[Running]:
    threads = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    path = {"PATH": f"{_BIN}{os.pathsep}{os.environ['PATH']}"}
    running = Running.start(
        Program(
            name=label,
            command=[str(_BIN / command), *map(str, words)],
            environment=os.environ | QUIET | threads | path | variables,
            log_path=folder / f"{label}.log",
            cwd=folder,
        )
    )
    try:
        yield running
    finally:
        running.end(60.0)


def _wait(done: Callable[[], bool], running: Running) -> None:
    wait_until(lambda: done() or bool(running.poll()), _PATIENCE_SECONDS)
    if not done():
        raise RuntimeError(f"{running.program.name}:\n" + "\n".join(running.lines))


def main() -> None:
    """Both, one after the other, and the ratio of their overheads."""
    parser = options_of(__doc__ or "")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--steps", type=int, default=8, help="local steps of 16 examples")
    options = parser.parse_args()
    with TemporaryDirectory() as name:
        data_settings(1, data := Path(name))
        found = {
            **stock(options.model, options.rounds, options.steps, data),
            **ours(options.model, options.rounds, options.steps, data),
        }
    ratio = found["ours_overhead_seconds"] / found["stock_overhead_seconds"]
    write({**found, "ratio": ratio, "rounds": options.rounds, **environment()}, options.json)


if __name__ == "__main__":
    sys.exit(main())
