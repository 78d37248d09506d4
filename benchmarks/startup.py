"""Seconds from the command to the first local step: ``perennial run`` and ``flwr run``.

    python -m benchmarks.startup --json -

The job of ``benchmarks.simulation`` with one round of one local step.  Ours starts with nothing in
its data directory: base, tokenised data and profiles are all made, and before the first round the
untrained model is scored on one example per class, which the stock app does not do.  Flower starts
its SuperLink.  The two take turns; ``ratio`` is of medians.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.clinc150 import a_model, environment, options_of, write
from benchmarks.simulation import measured, one_task, ours
from benchmarks.stock_simulation import Job, stock


def main() -> None:
    """Both in turn."""
    parser = options_of(__doc__ or "", model=a_model())
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    with TemporaryDirectory() as name:
        settings = [*one_task(folder := Path(name)), *options.set]
        job = Job(model=options.model, train_file=folder / "train.jsonl", rounds=1, local_steps=1)
        cases = {"ours": lambda: ours(job, settings), "stock": lambda: stock(job)}
        found = measured({n: cases[n] for n in options.only or cases}, options.repeats)
    seconds = {name: [t.first_step for t in timings] for name, timings in found.items()}
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    document = {
        "seconds_to_first_local_step": medians,
        "all": seconds,
        "total_seconds": {name: [t.total for t in timings] for name, timings in found.items()},
        "ratio": medians["ours"] / medians["stock"] if len(medians) == 2 else None,
    }
    write({**document, **environment()}, options.json)


if __name__ == "__main__":
    sys.exit(main())
