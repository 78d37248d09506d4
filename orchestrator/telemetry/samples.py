"""From what is known of a run to samples: (metric, label values after the run's, value); pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import accumulate

from prometheus_client.utils import floatToGoString

from orchestrator.digest import Scoring
from orchestrator.store.base import UNDER_WAY, RunRecord, RunStatus
from orchestrator.telemetry import catalog
from orchestrator.telemetry.catalog import RANK_BUCKETS, Spec
from orchestrator.telemetry.tally import RunTally
from strategies.types import FailureReason

Sample = tuple[Spec, tuple[str, ...], float]


def state_of(run: RunRecord, tally: RunTally) -> Iterator[Sample]:
    """Where a run is and what it has done; what is not known is left out."""
    yield from _identity(run, tally)
    yield from _work(tally)
    if run.status in UNDER_WAY:
        for state, count in _clients(run.progress, tally.events).items():
            yield catalog.CLIENTS, (state,), count


def quality_of(run: RunRecord, tally: RunTally) -> Iterator[Sample]:
    """How good a run's state is, as committed; what was not measured is left out."""
    found: list[tuple[Spec, tuple[str, ...], float | None]]
    found = [*_matrix(run, tally)]
    if newest := tally.newest:
        found += [(catalog.LOSS, (), newest.loss), (catalog.TRUNCATION, (), newest.truncation_max)]
    for spec, labels, value in found:
        if value is not None and math.isfinite(value):
            yield spec, labels, float(value)


def rank_buckets(ranks: Mapping[int, int]) -> tuple[list[tuple[str, float]], float]:
    """Cumulative counts by upper bound, and the sum of all ranks."""
    bounds = (*RANK_BUCKETS, math.inf)
    inside = [
        sum(count for rank, count in ranks.items() if low < rank <= high)
        for low, high in zip((-math.inf, *bounds), bounds, strict=False)
    ]
    named = map(floatToGoString, bounds)
    total = sum(rank * count for rank, count in ranks.items())
    return list(zip(named, map(float, accumulate(inside)), strict=True)), float(total)


def _identity(run: RunRecord, tally: RunTally) -> Iterator[Sample]:
    yield catalog.RUN_INFO, (run.name,), 1
    for status in RunStatus:
        yield catalog.RUN_STATUS, (status.value,), status is run.status
    if run.started_at:
        yield catalog.RUN_START, (), run.started_at.timestamp()
        last = tally.mark.committed_at if tally.mark else run.started_at
        yield catalog.LAST_COMMIT, (), last.timestamp()
    if run.status in UNDER_WAY and run.lease_expires_at:
        yield catalog.LEASE_EXPIRY, (), run.lease_expires_at.timestamp()
    if (steps := run.progress.get("steps")) is not None:
        yield catalog.PLANNED_STEPS, (), steps


def _work(tally: RunTally) -> Iterator[Sample]:
    failures = {reason: count for reason, count in tally.outcomes.items() if reason}
    yield catalog.BYTES, ("up",), tally.bytes_up
    yield catalog.BYTES, ("down",), tally.bytes_down
    yield catalog.REPLIES, ("ok",), tally.outcomes.get(None, 0)
    yield catalog.REPLIES, ("failed",), sum(failures.values())
    yield catalog.DEADLINE_MISSES, (), failures.get(FailureReason.DEADLINE, 0)
    for spec, counts in (
        (catalog.FAILURES, failures),
        (catalog.ROUNDS, tally.kinds),
        (catalog.PHASE_SECONDS, tally.phase_seconds),
        (catalog.EVENTS, tally.events),
    ):
        for word, count in sorted(counts.items()):
            yield spec, (word,), count


def _matrix(run: RunRecord, tally: RunTally) -> Iterator[tuple[Spec, tuple[str, ...], float]]:
    if not (tally.scores.clients and run.task_names):
        return
    matrix = Scoring(run=run, table=tally.scores).matrix
    yield catalog.ACCURACY, (), matrix.acc()
    yield catalog.FORGETTING, (), matrix.forgetting()
    for task, value in enumerate(matrix.values[matrix.last_row]):
        yield catalog.TASK_ACCURACY, (str(task),), value
    for task, value in enumerate(matrix.forgetting_per_task()):
        yield catalog.TASK_FORGETTING, (str(task),), value


def _clients(progress: Mapping[str, int], events: Mapping[str, int]) -> dict[str, int]:
    done = progress.get("clients_done", 0)
    held = events.get("client-quarantined", 0) - events.get("client-released", 0)
    return {
        "answered": done,
        "waiting": max(progress.get("clients_asked", 0) - done, 0),
        "quarantined": max(held, 0),
    }
