"""Runs as strict JSON; ``orchestrator.results`` gives the shapes, ``docs/json.md`` the words."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from orchestrator.forgetting import explained
from orchestrator.memory import in_words
from orchestrator.metrics import METRICS, AccuracyMatrix, by_client, worst_decile
from orchestrator.quarantine import Ward
from orchestrator.releases import described, verdicts
from orchestrator.results import (
    ComparedResult,
    ComparedRun,
    ComparedSetting,
    Comparison,
    Listing,
    Show,
)
from orchestrator.sections import Quarantine, Requirements
from orchestrator.store.base import EventRecord, ReplyRecord, RoundRecord, RunRecord
from strategies.arrival import Arrivals, arrivals
from strategies.recipe import StreamRecipe
from strategies.types import client_ids

SCHEMA_VERSION: Final = 1
_COMPARED: Final = (*METRICS, "bytes_up", "bytes_down", "duration_seconds")

Json = dict[str, Any]  # parts of a document before NaN has become null


def run_listing(records: Sequence[RunRecord]) -> Listing:
    """``perennial runs``: newest first, metrics as the run last published them."""
    listing: Listing = _strict(
        {"schema_version": SCHEMA_VERSION, "runs": [_listed(run) for run in records]}
    )
    return listing


def show(
    run: RunRecord,
    rounds: Sequence[RoundRecord],
    events: Sequence[EventRecord],
    *,
    report_path: str | None = None,
) -> Show:
    """``perennial show``: everything known of a run."""
    shown: Show = _strict(
        {
            "schema_version": SCHEMA_VERSION,
            **_identity(run),
            "reason": run.reason,
            "code_version": run.code_version,
            "tasks": run.task_names,
            "arrival": _arrival(run),
            **_scores(rounds, len(run.task_names), arrivals_of(run), _ward(run, rounds)),
            "bytes_up": _sum(rounds, "bytes_up"),
            "bytes_down": _sum(rounds, "bytes_down"),
            "rounds": [_round(record) for record in rounds],
            "releases": _releases(run, rounds, events),
            "events": [_event(event) for event in events],
            "adapter_path": run.adapter_path,
            "report_path": report_path,
            "checkpoint": run.checkpoint,
            "config": run.config,
            "environment": run.environment,
        }
    )
    return shown


def compare(shows: Sequence[Show]) -> Comparison:
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


def _differing(shows: Sequence[Show]) -> list[ComparedSetting]:
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


def _arrival(run: RunRecord) -> str:
    """``together`` for runs from before there was a choice."""
    return str(run.config.get("stream", {}).get("arrival", "together"))


def arrivals_of(run: RunRecord) -> Arrivals | None:
    """When each client meets each task; None where all meet the same at once."""
    if _arrival(run) == "together" or not run.task_names:
        return None
    recipe = StreamRecipe.model_validate(run.config["stream"])
    clients = client_ids(run.config["federation"]["clients"])
    return arrivals(recipe, clients, len(run.task_names), run.config["seed"])


def _ward(run: RunRecord, rounds: Sequence[RoundRecord]) -> Ward:
    """Who is in quarantine after the last step, by the run's own rule."""
    rule = run.config.get("federation", {}).get("quarantine")
    return Ward.of(Quarantine.model_validate(rule) if rule else None, rounds)


def _scores(
    rounds: Sequence[RoundRecord], num_tasks: int, when: Arrivals | None, ward: Ward
) -> Json:
    scores = [score for record in rounds for score in record.scores]
    matrix = AccuracyMatrix.of(scores, num_tasks, when=when)
    own = by_client(scores, num_tasks, when)
    accs = [each.acc() for each in own.values()]
    losses = [each.forgetting() for each in own.values()]
    return {
        "tasks_learnt": matrix.num_learnt,
        "last_row": matrix.last_row,
        "learnt_at": matrix.rows.tolist(),
        "accuracy_matrix": matrix.values.tolist(),
        "average_accuracy": matrix.average_accuracy().tolist(),
        **{name: metric(matrix) for name, metric in METRICS.items()},
        "forgetting_per_task": matrix.forgetting_per_task().tolist(),
        "acc_over_clients": {"mean": _mean(accs), "worst_decile": worst_decile(accs)},
        "forgetting_over_clients": {
            "mean": _mean(losses),
            "worst_decile": -worst_decile([-lost for lost in losses]),
        },
        "forgetting_explained": explained(rounds, num_tasks, when),
        "clients": _clients(rounds, own, ward),
    }


def _mean(values: Sequence[float]) -> float | None:
    """Of what was measured."""
    measured = [value for value in values if math.isfinite(value)]
    return sum(measured) / len(measured) if measured else None


def _round(record: RoundRecord) -> Json:
    failed = sum(reply.status == "failed" for reply in record.replies)
    return {
        "step": record.step_index,
        "kind": record.kind,
        "task": record.task_index,
        "round": record.round_index,
        "committed_at": record.committed_at.isoformat(),
        "loss": record.metrics.get("loss"),
        "seconds": dict(record.seconds),
        "client_seconds": _phases(record.replies),
        "bytes_up": sum(reply.bytes_up for reply in record.replies),
        "bytes_down": sum(reply.bytes_down for reply in record.replies),
        "clients_ok": len(record.replies) - failed,
        "clients_failed": failed,
        "truncation_max": max(record.truncation.values(), default=None),
        "drift": dict(record.drift),
        "replayed": sum(reply.metrics.get("replayed", 0.0) for reply in record.replies),
        "accuracy": _mid_task_accuracy(record),
        "staleness": _mean([reply.metrics.get("staleness", math.nan) for reply in record.replies]),
        "intruders": record.metrics.get("intruders"),
        "replies": [_reply(reply) for reply in record.replies],
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


def _mid_task_accuracy(record: RoundRecord) -> float | None:
    """Pooled accuracy of the state the round began with, where that was scored."""
    scores = [score for score in record.scores if score.mid_task]
    examples = sum(score.num_examples for score in scores)
    return sum(score.num_correct for score in scores) / examples if examples else None


def _phases(replies: Iterable[ReplyRecord]) -> dict[str, float]:
    """Seconds by phase, summed over clients; ``total`` counts from push to reply."""
    phases = defaultdict[str, float](float)
    for reply in replies:
        for phase, seconds in reply.seconds.items():
            phases[phase] += seconds
    return dict(phases)


def _clients(
    rounds: Sequence[RoundRecord], own: Mapping[str, AccuracyMatrix], ward: Ward
) -> list[Json]:
    replies = defaultdict[str, list[ReplyRecord]](list)
    for record in rounds:
        for reply in record.replies:
            replies[reply.client_id].append(reply)
    kept = {str(client): stay.why for client, stay in ward.stays.items()}
    return [
        {
            **_client(client, replies[client], own.get(client)),
            "quarantine": kept.get(client),
        }
        for client in sorted(replies)
    ]


def _client(client_id: str, replies: Sequence[ReplyRecord], own: AccuracyMatrix | None) -> Json:
    trained = [reply for reply in replies if reply.num_examples]
    failed = [reply for reply in replies if reply.status == "failed"]
    return {
        "client_id": client_id,
        "rounds": len(trained),
        "num_examples": sum(reply.num_examples for reply in trained),
        "bytes_up": sum(reply.bytes_up for reply in replies),
        "bytes_down": sum(reply.bytes_down for reply in replies),
        "seconds": sum(reply.seconds.get("compute", 0.0) for reply in replies),
        "failures": len(failed),
        "failure_reasons": sorted({reply.failure_reason or "unknown" for reply in failed}),
        "acc": own.acc() if own else None,
        "forgetting": own.forgetting() if own else None,
        "peak_memory_bytes": max(reply.peak_memory_bytes for reply in replies),
        "ranks": dict(trained[-1].ranks) if trained else {},
        "memory_plan": in_words(trained[-1].metrics, trained[-1].peak_memory_bytes)
        if trained
        else None,
    }


def _releases(
    run: RunRecord, rounds: Sequence[RoundRecord], events: Sequence[EventRecord]
) -> list[Json]:
    """Judged anew from the scores, by what the run file asks for."""
    require = Requirements.model_validate(run.config.get("publish", {}).get("require", {}))
    found = verdicts(rounds, require, run.task_names, arrivals_of(run))
    return described(rounds, found, events, len(run.task_names))


def _event(event: EventRecord) -> Json:
    return {
        "at": event.at.isoformat(),
        "kind": event.kind,
        "message": event.message,
        "data": dict(event.data),
    }


def _sum(rounds: Sequence[RoundRecord], name: str) -> int:
    return sum(getattr(reply, name) for record in rounds for reply in record.replies)


def _iso(time: datetime | None) -> str | None:
    return time.isoformat() if time else None


def _strict(value: Any) -> Any:
    """The same, with null for NaN and infinities: JSON has neither."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    return value
