"""What a run costs as it grows: clients, cohort, modules, rank, tasks, and replies on record.

    python -m benchmarks.scale --json -

``clients``: 10 000 clients, 50 rounds of 100, all in one process, and how much memory it has after
round 5 and after round 50.  ``replies``: the same rounds on a record that already holds 100 000
replies of the run.  ``ray``, only where it is asked for: the 10 000 clients in processes of Ray,
where the server has a process of its own.  ``growth-…``: one size is varied alone, and the exponent
of what it costs is fitted as the slope of a straight line through the logarithms.
"""

from __future__ import annotations

import argparse
import math
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.clinc150 import environment, write
from benchmarks.scale_runs import MODULES_PER_BLOCK, Job, Watched, median
from orchestrator.checkpoint import load_state
from orchestrator.conduct import submit
from orchestrator.home import Home
from orchestrator.retention import Keeper
from orchestrator.store.base import RoundRecord
from strategies.types import GlobalState

_LARGE: Final = Job(clients=10_000, cohort=100, rounds_per_task=25, examples=40_000, held_out=1_000)
_BASE: Final = Job(rounds_per_task=4)
_AXES: Final[dict[str, tuple[int, ...]]] = {
    "clients": (100, 1_000, 10_000),
    "cohort": (10, 30, 100),
    "blocks": (1, 2, 4, 8),
    "rank": (2, 4, 8, 16),
    "tasks": (1, 2, 4, 8),
}
_EARLY, _LATE = 5, 50  # rounds after which memory is looked at
_REPLIES, _ROUNDS = 100_000, 25


def clients(home: Home) -> dict[str, Any]:
    """The large run in one process."""
    return _large(_LARGE, home, _LATE)


def ray(home: Home) -> dict[str, Any]:
    """The large run, shorter, in processes of Ray."""
    return _large(replace(_LARGE, transport="ray", rounds_per_task=_EARLY), home, 2 * _EARLY)


def _large(job: Job, home: Home, last: int) -> dict[str, Any]:
    found = Watched.run(job, home)
    rounds = found.round_seconds()
    return {
        "clients": job.clients,
        "cohort": job.cohort,
        "rounds": job.tasks * job.rounds_per_task,
        "transport": job.transport,
        "seconds": found.seconds,
        "processor_seconds": max(found.processor.values()),
        "seconds_until_the_first_step": found.begun_seconds(),
        "scoring_seconds": [sum(r.seconds.values()) for r in found.rounds() if r.kind != "train"],
        "rounds_per_minute": 60 / median(rounds),
        "round_seconds": {"first_half": _half(rounds, 0), "second_half": _half(rounds, 1)},
        "resident_bytes": {str(n): found.resident[n] for n in (_EARLY, last)},
        "resident_ratio": found.resident[last] / found.resident[_EARLY],
        "peak_bytes": found.peak,
        "database_bytes": _size(home.folder, "perennial.db*"),
        "client_state_bytes": _size(home.client_folder, "**/*"),
        "clients_with_state": sum(1 for _ in (home.client_folder / found.run_id).iterdir()),
    }


def replies(home: Home) -> dict[str, Any]:
    """Rounds of 100 before and after 1 000 further steps of 100 replies were put on record."""
    more = _REPLIES // _LARGE.cohort
    job = replace(
        _LARGE, clients=1_000, tasks=1, rounds_per_task=2 * _ROUNDS + more, examples=4_000
    )
    found = Watched(submit(job.config(home.folder), home), home, stop_after=_ROUNDS).carry_on()
    before, first_bytes = found.rounds(), _size(home.folder, "perennial.db*")
    _lengthen(found, more)
    after = Watched(found.run_id, home).carry_on()
    early, late = found.round_seconds()[: len(before)], after.round_seconds(len(before) + more)
    num_replies = sum(step.totals.clients_ok for step in home.store().sums(found.run_id).steps)
    ended = home.store().get_run(found.run_id).ended_at or after.rounds()[-1].committed_at
    return {
        "replies_on_record": num_replies,
        "round_seconds_before": median(early[:_ROUNDS]),
        "round_seconds_after": median(late),
        "ratio": median(late) / median(early[:_ROUNDS]),
        "seconds_to_take_up": after.begun_seconds(len(before) + more),
        "peak_bytes_before": found.peak,
        "peak_bytes_after": after.peak,
        "database_bytes": {"before": first_bytes, "after": _size(home.folder, "perennial.db*")},
        "last_scoring_to_end_seconds": (ended - after.rounds()[-1].committed_at).total_seconds(),
    }


def _lengthen(found: Watched, more: int) -> None:
    """Put ``more`` steps on record that are like the last one, and a state to go on from."""
    home, store = found.home, found.home.store()
    last = list(store.rounds(found.run_id))[-1]
    state = load_state(last.checkpoint, home.blobs())
    keeper = Keeper(run_id=found.run_id, store=store, blobs=home.blobs(), keep=3)
    for index in range(last.step_index + 1, last.step_index + 1 + more):
        checkpoint = last.checkpoint
        if index == last.step_index + more:
            checkpoint = keeper.save(_later(state, index + 1))
        store.commit_round(found.run_id, _like(last, index, checkpoint))


def _later(state: GlobalState, step_index: int) -> GlobalState:
    return replace(state, step_index=step_index)


def _like(last: RoundRecord, index: int, checkpoint: str) -> RoundRecord:
    made = f"/{index:05d}/"
    return replace(
        last,
        step_index=index,
        round_index=last.round_index + index - last.step_index,
        checkpoint=checkpoint,
        replies=tuple(
            replace(r, assignment_id=r.assignment_id.replace(f"/{last.step_index:05d}/", made))
            for r in last.replies
        ),
    )


def growth(axis: str, home: Home) -> dict[str, Any]:
    """One size varied alone; ``exponents`` of processor time, memory and bytes."""
    points = [_point(axis, size, home) for size in _AXES[axis]]
    xs = [point["size"] for point in points]
    measured = [name for name in points[0] if name != "size"]
    return {
        "points": points,
        "exponents": {name: _exponent(xs, [p[name] for p in points]) for name in measured},
    }


def _point(axis: str, size: int, home: Home) -> dict[str, float]:
    held = max(size, _BASE.clients) if axis == "clients" else _BASE.clients
    job = replace(_BASE, **{axis: size}, examples=max(_BASE.examples, 4 * held))
    found = Watched.run(job, home)
    steps = found.rounds()
    rounds = [index for index, step in enumerate(steps) if step.kind == "train"]
    shown = {
        "size": float(size * MODULES_PER_BLOCK if axis == "blocks" else size),
        "start_processor_seconds": found.processor[0],
        "round_processor_seconds": median(
            [
                found.processor_between(i, i + 1)
                for i in rounds
                if {i, i + 1} <= found.processor.keys()
            ]
        ),
        "steps_processor_seconds": found.processor_between(1, max(found.processor)),
        "peak_bytes": float(found.peak),
        "bytes": float(found.traffic()),
    }
    shutil.rmtree(home.client_folder, ignore_errors=True)
    return shown


def _exponent(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Slope of the least-squares line through the logarithms."""
    slope, _ = np.polyfit(np.log(xs), np.log(ys), 1)
    return round(float(slope), 3)


def table(grown: Mapping[str, Any]) -> str:
    """Axes by name as a Markdown table."""
    rows = ["| varied alone | sizes | before the first step | all steps | peak memory | bytes |"]
    rows.append("|---|---|---|---|---|---|")
    for axis, found in grown.items():
        points, fitted = found["points"], found["exponents"]
        sizes = ", ".join(f"{point['size']:g}" for point in points)
        cells = [
            _cell([p[name] * scale for p in points], fitted[name], unit)
            for name, scale, unit in _COLUMNS
        ]
        name = "modules" if axis == "blocks" else axis
        rows.append(f"| {name} | {sizes} | {' | '.join(cells)} |")
    return "\n".join(rows)


_COLUMNS: Final = (
    ("start_processor_seconds", 1.0, "s"), ("steps_processor_seconds", 1.0, "s"),
    ("peak_bytes", 2.0**-20, "MiB"), ("bytes", 1e-6, "MB"),
)  # fmt: skip


def _cell(values: Sequence[float], exponent: float, unit: str) -> str:
    digits = 0 if math.fsum(values) > 100 else 2
    return f"{values[0]:.{digits}f} → {values[-1]:.{digits}f} {unit}, n^{exponent:.2f}"


def _half(values: Sequence[float], which: int) -> float:
    middle = len(values) // 2
    return median(list(values[middle:] if which else values[:middle]))


def _size(folder: Path, pattern: str) -> int:
    return sum(path.stat().st_size for path in folder.glob(pattern) if path.is_file())


_PARTS: Final[dict[str, Callable[[Home], dict[str, Any]]]] = {
    "clients": clients,
    "replies": replies,
    "ray": ray,
    **{f"growth-{axis}": partial(growth, axis) for axis in _AXES},
}
_UNASKED: Final = [name for name in _PARTS if name != "ray"]  # which takes as long as all others


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", default="-", help="where the result goes; - is standard output")
    parser.add_argument("--only", nargs="+", choices=_PARTS, default=_UNASKED)
    options = parser.parse_args()
    result: dict[str, Any] = {"environment": environment()}
    for name in options.only:
        with tempfile.TemporaryDirectory(prefix="perennial-scale-") as folder:
            url = f"sqlite:///{Path(folder) / 'perennial.db'}"
            result[name] = _PARTS[name](Home(folder=Path(folder), database_url=url))
        if options.json != "-":
            write(result, options.json)  # a part that fails takes no other with it
    grown = {n.removeprefix("growth-"): x for n, x in result.items() if n.startswith("growth-")}
    if grown:
        print(table(grown), file=sys.stderr)
    if options.json == "-":
        write(result, options.json)


if __name__ == "__main__":
    sys.exit(main())
