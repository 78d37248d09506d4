"""Runs as strict JSON, in the schema of ``docs/json.md``."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from orchestrator.metrics import METRICS, AccuracyMatrix
from orchestrator.store.base import EventRecord, ReplyRecord, RoundRecord, RunRecord

SCHEMA_VERSION: Final = 1
_COMPARED: Final = (*METRICS, "bytes_up", "bytes_down", "duration_seconds")

Json = dict[str, Any]  # JSON is what it is; docs/json.md says what is in it


def run_listing(records: Sequence[RunRecord]) -> Json:
    """``perennial runs``: newest first, metrics as the run last published them."""
    runs: list[Json] = _strict([_listed(run) for run in records])
    return {"schema_version": SCHEMA_VERSION, "runs": runs}


def show(
    run: RunRecord,
    rounds: Sequence[RoundRecord],
    events: Sequence[EventRecord],
    *,
    report_path: str | None = None,
) -> Json:
    """``perennial show``: everything known of a run."""
    matrix = AccuracyMatrix.of((s for r in rounds for s in r.scores), len(run.task_names))
    shown = {
        "schema_version": SCHEMA_VERSION,
        "run_id": run.run_id,
        "name": run.name,
        "status": run.status.value,
        "reason": run.reason,
        "config_digest": run.config_digest,
        "code_version": run.code_version,
        "seed": run.config.get("seed"),
        "created_at": run.created_at.isoformat(),
        "started_at": _iso(run.started_at),
        "ended_at": _iso(run.ended_at),
        "duration_seconds": _duration(run),
        "tasks": list(run.task_names),
        "accuracy_matrix": matrix.values.tolist(),
        **{name: metric(matrix) for name, metric in METRICS.items()},
        "forgetting_per_task": matrix.forgetting_per_task().tolist(),
        "bytes_up": _sum(rounds, "bytes_up"),
        "bytes_down": _sum(rounds, "bytes_down"),
        "rounds": [_round(record) for record in rounds],
        "clients": _clients(rounds, len(run.task_names)),
        "events": [_event(event) for event in events],
        "adapter_path": run.adapter_path,
        "report_path": report_path,
        "checkpoint": run.checkpoint,
        "config": run.config,
        "environment": run.environment,
    }
    strict: Json = _strict(shown)
    return strict


def compare(shows: Sequence[Json]) -> Json:
    """``perennial compare``: results side by side, and every setting in which the runs differ."""
    flat = [dict(_flat(shown["config"])) for shown in shows]
    keys = sorted({key for config in flat for key in config})
    values = {key: [config.get(key) for config in flat] for key in keys}
    return {
        "schema_version": SCHEMA_VERSION,
        "runs": [
            {key: s[key] for key in ("run_id", "name", "status", "config_digest")} for s in shows
        ],
        "results": [{"metric": m, "values": [s[m] for s in shows]} for m in _COMPARED],
        "config": [
            {"key": key, "values": row}
            for key, row in values.items()
            if any(v != row[0] for v in row)
        ],
    }


def _listed(run: RunRecord) -> Json:
    progress = run.progress
    return {
        "run_id": run.run_id,
        "name": run.name,
        "status": run.status.value,
        "created_at": run.created_at.isoformat(),
        "started_at": _iso(run.started_at),
        "ended_at": _iso(run.ended_at),
        "duration_seconds": _duration(run),
        "config_digest": run.config_digest,
        "seed": run.config.get("seed"),
        "num_tasks": len(run.task_names),
        **{name: progress.get(name) for name in METRICS},
        "bytes_up": progress.get("bytes_up"),
        "bytes_down": progress.get("bytes_down"),
        "rounds": progress.get("rounds"),
        "adapter_path": run.adapter_path,
    }


def _round(record: RoundRecord) -> Json:
    failed = [reply for reply in record.replies if reply.status == "failed"]
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
        "clients_ok": len(record.replies) - len(failed),
        "clients_failed": len(failed),
        "truncation_max": max(record.truncation.values(), default=None),
        "replayed": sum(reply.metrics.get("replayed", 0.0) for reply in record.replies),
        "accuracy": _mid_task_accuracy(record),
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
    """The clients' own seconds by phase, summed; ``total`` counts from push to reply."""
    phases = defaultdict[str, float](float)
    for reply in replies:
        for phase, seconds in reply.seconds.items():
            phases[phase] += seconds
    return dict(phases)


def _clients(rounds: Sequence[RoundRecord], num_tasks: int) -> list[Json]:
    replies, scores = defaultdict[str, list[ReplyRecord]](list), defaultdict[str, list[Any]](list)
    for record in rounds:
        for reply in record.replies:
            replies[reply.client_id].append(reply)
        for score in record.scores:
            scores[score.client_id].append(score)
    return [
        _client(client, replies[client], AccuracyMatrix.of(scores[client], num_tasks))
        for client in sorted(replies)
    ]


def _client(client_id: str, replies: Sequence[ReplyRecord], matrix: AccuracyMatrix) -> Json:
    trained = [reply for reply in replies if reply.num_examples]
    reasons = [reply.failure_reason for reply in replies if reply.failure_reason]
    return {
        "client_id": client_id,
        "rounds": len(trained),
        "num_examples": sum(reply.num_examples for reply in trained),
        "bytes_up": sum(reply.bytes_up for reply in replies),
        "bytes_down": sum(reply.bytes_down for reply in replies),
        "seconds": sum(reply.seconds.get("compute", 0.0) for reply in replies),
        "failures": len(reasons),
        "failure_reasons": sorted(set(reasons)),
        "acc": matrix.acc(),
        "forgetting": matrix.forgetting(),
        "peak_memory_bytes": max((reply.peak_memory_bytes for reply in replies), default=0),
        "ranks": dict(trained[-1].ranks) if trained else {},
    }


def _event(event: EventRecord) -> Json:
    return {
        "at": event.at.isoformat(),
        "kind": event.kind,
        "message": event.message,
        "data": dict(event.data),
    }


def _sum(rounds: Sequence[RoundRecord], name: str) -> int:
    return sum(getattr(reply, name) for record in rounds for reply in record.replies)


def _duration(run: RunRecord) -> float | None:
    if run.started_at is None:
        return None
    return ((run.ended_at or datetime.now(UTC)) - run.started_at).total_seconds()


def _iso(time: datetime | None) -> str | None:
    return time.isoformat() if time else None


def _flat(value: Any, prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Leaves of a tree of tables with dotted keys; lists are leaves."""
    if not isinstance(value, Mapping):
        yield prefix, value
        return
    for key, item in value.items():
        yield from _flat(item, f"{prefix}.{key}" if prefix else str(key))


def _strict(value: Any) -> Any:
    """The same, with null for NaN and infinities: JSON has neither."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    return value
