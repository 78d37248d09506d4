"""How much of the machine a Ray simulation spends on local training.

    python -m benchmarks.simulation --json -

Runs the CLINC150 job of ``examples/clinc150.toml`` (a stream of the given number of tasks) through
``perennial run`` and reads the run database afterwards.  ``efficiency`` is the sum of the clients'
own local compute over cores × wall, between the first commit after warm-up and the last: 1 would
mean that no core ever waited for Ray, for the server or for another client.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path

from orchestrator.conduct import submit
from orchestrator.config import load_config
from orchestrator.cores import usable_cores
from orchestrator.home import Home
from orchestrator.launch import Simulation
from orchestrator.store.base import RoundRecord

_RUN_FILE = Path(__file__).parent.parent / "examples" / "clinc150.toml"


def measure(overrides: list[str], warm_up_rounds: int) -> dict[str, object]:
    """Run the job; figures over its training rounds after the first ``warm_up_rounds``."""
    home, config = Home.from_environment(), load_config(_RUN_FILE, overrides)
    run_id = submit(config, home)
    status = Simulation.start(run_id, home).watch(lambda: None)
    rounds = [r for r in home.store().rounds(run_id) if r.kind == "train"][warm_up_rounds:]
    cores = usable_cores()
    phases = ("exchange", "aggregate", "checkpoint")
    walls = [sum(r.seconds[phase] for phase in phases) for r in rounds]
    return {
        "run_id": run_id,
        "status": str(status),
        "cores": cores,
        "rounds": len(rounds),
        "efficiency": sum(map(_compute, rounds)) / (cores * sum(walls)),
        "efficiency_training_only": sum(map(_training, rounds)) / (cores * sum(walls)),
        "round_seconds_median": statistics.median(walls),
        "exchange_seconds_median": statistics.median(r.seconds["exchange"] for r in rounds),
        "aggregate_seconds_median": statistics.median(r.seconds["aggregate"] for r in rounds),
        "checkpoint_seconds_median": statistics.median(r.seconds["checkpoint"] for r in rounds),
    }


def _compute(record: RoundRecord) -> float:
    return sum(reply.seconds.get("compute", 0.0) for reply in record.replies)


def _training(record: RoundRecord) -> float:
    return sum(reply.seconds.get("train", 0.0) for reply in record.replies)


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--json", default="-", help="where to write the result; - is standard output"
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--warm-up-rounds", type=int, default=2)
    options = parser.parse_args()
    text = json.dumps(measure(options.set, options.warm_up_rounds), indent=2)
    if options.json == "-":
        print(text)
    else:
        Path(options.json).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
