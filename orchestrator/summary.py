"""Runs as strict JSON; ``orchestrator.results`` gives the shapes, ``docs/json.md`` the words."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from orchestrator.digest import Digest, Json, Scoring, step_row
from orchestrator.figures import StepCosts
from orchestrator.metrics import METRICS
from orchestrator.results import (
    ComparedResult,
    ComparedRun,
    ComparedSetting,
    Comparison,
    Listing,
    Outline,
    Overview,
    Show,
    ShownClient,
    ShownEvent,
    ShownReply,
    SummedRound,
)
from orchestrator.store.base import EventRecord, ReplyRecord, RoundRecord, RunRecord
from orchestrator.store.browsing import RunCourse
from orchestrator.store.drift import DriftTable
from orchestrator.store.totals import StepCost, StepRecord

SCHEMA_VERSION: Final = 1
_PLAIN: Final = frozenset({int, str, bool, type(None)})
_COMPARED: Final = (*METRICS, "bytes_up", "bytes_down", "duration_seconds")


def run_listing(records: Sequence[RunRecord]) -> Listing:
    """``perennial runs``: newest first, metrics as the run last published them."""
    listing: Listing = strict(
        {"schema_version": SCHEMA_VERSION, "runs": [_listed(run) for run in records]}
    )
    return listing


def overview(
    digest: Digest,
    drift: DriftTable,
    events: Sequence[EventRecord],
    *,
    report_path: str | None = None,
) -> Overview:
    """A run without its steps, clients and events; of these it needs where adapters were put."""
    shown: Overview = strict(_overview(digest, drift, events, report_path))
    return shown


def outline(course: RunCourse) -> Outline:
    """What a comparison needs of a run."""
    run, costs = course.run, course.costs
    shown: Outline = strict(
        {
            **_identity(run),
            **Scoring(run=run, table=course.scores).headline(),
            "bytes_up": sum(cost.bytes_up for cost in costs),
            "bytes_down": sum(cost.bytes_down for cost in costs),
            "config": run.config,
        }
    )
    return shown


def step_costs(costs: Sequence[StepCost]) -> list[StepCosts]:
    """What committed steps took."""
    found: list[StepCosts] = strict(
        [
            {
                "kind": cost.kind,
                "task": cost.task_index,
                "seconds": dict(cost.seconds),
                "bytes_up": cost.bytes_up,
                "bytes_down": cost.bytes_down,
            }
            for cost in costs
        ]
    )
    return found


def summed_rounds(steps: Sequence[StepRecord]) -> list[SummedRound]:
    """Committed steps without their replies."""
    rounds: list[SummedRound] = strict([step_row(step) for step in steps])
    return rounds


def shown_replies(replies: Sequence[ReplyRecord]) -> list[ShownReply]:
    """What clients answered."""
    found: list[ShownReply] = strict([_reply(reply) for reply in replies])
    return found


def shown_clients(digest: Digest) -> list[ShownClient]:
    """Every client that was ever asked, by id."""
    clients: list[ShownClient] = strict(digest.client_rows())
    return clients


def shown_events(events: Sequence[EventRecord]) -> list[ShownEvent]:
    """What happened, in the order given."""
    found: list[ShownEvent] = strict([_event(event) for event in events])
    return found


def show(
    run: RunRecord,
    rounds: Sequence[RoundRecord],
    events: Sequence[EventRecord],
    *,
    report_path: str | None = None,
) -> Show:
    """``perennial show``: everything known of a run."""
    digest = Digest.of(run, rounds)
    replies = [[_reply(reply) for reply in record.replies] for record in rounds]
    return _shown(digest, replies, events, report_path)


def show_without_replies(
    digest: Digest, events: Sequence[EventRecord], *, report_path: str | None = None
) -> Show:
    """``show`` of a run whose replies are too many to have at once."""
    return _shown(digest, [[] for _ in digest.steps], events, report_path)


def _shown(
    digest: Digest,
    replies: Sequence[list[Json]],
    events: Sequence[EventRecord],
    report_path: str | None,
) -> Show:
    shown: Show = strict(
        {
            **_overview(
                digest,
                DriftTable.of_rounds(step.record for step in digest.steps),
                events,
                report_path,
            ),
            "rounds": [
                {**step_row(step), "replies": own}
                for step, own in zip(digest.steps, replies, strict=True)
            ],
            "clients": digest.client_rows(),
            "events": [_event(event) for event in events],
        }
    )
    return shown


def compare(shows: Sequence[Outline]) -> Comparison:
    """``perennial compare``: results side by side, and every setting in which the runs differ."""
    plain: Sequence[Mapping[str, Any]] = shows
    return Comparison(
        schema_version=SCHEMA_VERSION,
        runs=[
            ComparedRun(
                run_id=shown["run_id"],
                name=shown["name"],
                status=shown["status"],
                config_digest=shown["config_digest"],
            )
            for shown in shows
        ],
        results=[ComparedResult(metric=m, values=[s[m] for s in plain]) for m in _COMPARED],
        config=_differing(shows),
    )


def _differing(shows: Sequence[Outline]) -> list[ComparedSetting]:
    flat = [dict(flattened(shown["config"])) for shown in shows]
    rows = {key: [config.get(key) for config in flat] for config in flat for key in config}
    return [
        ComparedSetting(key=key, values=row)
        for key, row in sorted(rows.items())
        if any(value != row[0] for value in row)
    ]


def flattened(value: Any, prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Leaves of a tree of tables with dotted keys; lists are leaves."""
    if not isinstance(value, Mapping):
        yield prefix, value
        return
    for key, item in value.items():
        yield from flattened(item, f"{prefix}.{key}" if prefix else str(key))


def stage_names(shown: Mapping[str, Any]) -> list[str]:
    """What was learnt in each stage: a task or, where clients meet them apart, several."""
    if shown["arrival"] == "together":
        return list(shown["tasks"])
    return [f"stage {i}" for i in range(1, len(shown["accuracy_matrix"]))]


def row_names(shown: Mapping[str, Any]) -> list[str]:
    """What was learnt by each row of the accuracy matrix but the first."""
    names = stage_names(shown)
    if shown["arrival"] != "together":
        return names
    return [f"{i} {name}" for i, name in enumerate(names, start=1)]


def strict(value: Any) -> Any:
    """The same, with null for NaN and infinities: JSON has neither."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        # Most values are plain; a call for each would cost more than all the rest.
        return {str(k): v if type(v) in _PLAIN else strict(v) for k, v in value.items()}
    if isinstance(value, Mapping):
        return strict(dict(value))
    if isinstance(value, list | tuple):
        return [item if type(item) in _PLAIN else strict(item) for item in value]
    return value


def _overview(
    digest: Digest, drift: DriftTable, events: Sequence[EventRecord], report_path: str | None
) -> Json:
    run = digest.run
    return {
        "schema_version": SCHEMA_VERSION,
        **_identity(run),
        "reason": run.reason,
        "code_version": run.code_version,
        "tasks": run.task_names,
        **digest.results(drift),
        "releases": digest.releases(events),
        "adapter_path": run.adapter_path,
        "report_path": report_path,
        "checkpoint": run.checkpoint,
        "config": run.config,
        "environment": run.environment,
    }


def _identity(run: RunRecord) -> Json:
    """What a listing and a show say alike.  The duration counts pauses too."""
    last = run.ended_at or datetime.now(UTC)
    return {
        "run_id": run.run_id,
        "name": run.name,
        "status": run.status.value,
        "config_digest": run.config_digest,
        "seed": run.config.get("seed"),
        "created_at": run.created_at.isoformat(),
        "started_at": _iso(run.started_at),
        "ended_at": _iso(run.ended_at),
        "duration_seconds": _seconds(run.started_at, last),
        "tags": run.tags,
    }


def _seconds(start: datetime | None, end: datetime) -> float | None:
    """From ``start`` to ``end``, never less than nothing: a clock may have been set back."""
    return None if start is None else max((end - start).total_seconds(), 0.0)


def _listed(run: RunRecord) -> Json:
    published = (*METRICS, "bytes_up", "bytes_down", "rounds")
    return {
        **_identity(run),
        "num_tasks": len(run.task_names),
        **{name: run.progress.get(name) for name in published},
        "adapter_path": run.adapter_path,
    }


def _reply(reply: ReplyRecord) -> Json:
    return {
        "client_id": reply.client_id,
        "status": reply.status,
        "failure_reason": reply.failure_reason,
        "failure_detail": reply.failure_detail,
        "num_examples": reply.num_examples,
        "bytes_up": reply.bytes_up,
        "bytes_down": reply.bytes_down,
        "seconds": dict(reply.seconds),
        "metrics": dict(reply.metrics),
        "ranks": dict(reply.ranks),
        "peak_memory_bytes": reply.peak_memory_bytes,
    }


def _event(event: EventRecord) -> Json:
    return {
        "at": event.at.isoformat(),
        "kind": event.kind,
        "message": event.message,
        "data": dict(event.data),
    }


def _iso(time: datetime | None) -> str | None:
    return time.isoformat() if time else None
