"""Many inputs in a row, in one process or in several, and what is told of them."""

from __future__ import annotations

import random
import resource
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

from tests.fuzz.targets import Tally, one, warm_up

_SUMMED = ("inputs", "crashes", "accepted", "accepted_invalid", "refused_valid", "measured_inputs",
           "over_limit")  # fmt: skip


def shared_out(inputs: int, seed: int, workers: int) -> dict[str, Any]:
    """The inputs in so many processes at once, each with a seed of its own; one report."""
    start, share = time.monotonic(), -(-inputs // workers)
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        seeds = range(seed, seed + workers)
        parts = list(pool.map(fuzzed, [share] * workers, seeds))
    nearest = max(parts, key=lambda part: part["peak_allocated_bytes"] / part["limit_bytes"])
    report = {**nearest, "seed": list(seeds), "seconds": round(time.monotonic() - start, 1)}
    report["examples"] = [example for part in parts for example in part["examples"]][:20]
    report["by_target"] = dict(sum((Counter(part["by_target"]) for part in parts), Counter()))
    return report | {name: sum(part[name] for part in parts) for name in _SUMMED}


def fuzzed(inputs: int, seed: int) -> dict[str, Any]:
    """What became of so many inputs."""
    rng, start = random.Random(seed), time.monotonic()  # noqa: S311 - no secrets
    warm_up()
    tally = Tally()
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(inputs):
        one(tally, rng)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - resident
    return told(tally) | {
        "seed": seed,
        "resident_growth_bytes": grown * 1024,
        "seconds": round(time.monotonic() - start, 1),
    }


def told(tally: Tally) -> dict[str, Any]:
    """The tally as it is printed."""
    return {
        "inputs": tally.inputs,
        "crashes": len(tally.crashes),
        "accepted": tally.accepted,
        "accepted_invalid": len(tally.accepted_invalid),
        "refused_valid": len(tally.refused_valid),
        "measured_inputs": tally.measured,
        "over_limit": tally.over_limit,
        "peak_allocated_bytes": tally.peak,
        "limit_bytes": tally.limit,
        "by_target": dict(sorted(tally.by_target.items())),
        "examples": [*tally.crashes, *tally.accepted_invalid, *tally.refused_valid][:20],
    }
