"""A closed step as it is put on record."""

from __future__ import annotations

from datetime import UTC, datetime

from orchestrator.memory import excess, in_words
from orchestrator.plans import Plan
from orchestrator.rounds import Outcome
from orchestrator.store.base import EventRecord, RoundRecord


def round_record(
    plan: Plan, outcome: Outcome, checkpoint: str, seconds: dict[str, float]
) -> RoundRecord:
    """The row of a step, with events: its plan's notes, failures, screening, memory exceeded."""
    step, now = plan.step, datetime.now(UTC)
    notes = [EventRecord(at=now, kind="planned", message=note) for note in plan.notes]
    failures = [
        EventRecord(
            at=now,
            kind="client-failed",
            message=f"{reply.client_id}: {reply.failure_reason}: {reply.failure_detail}",
            data={"client_id": reply.client_id, "step_index": plan.step_index},
        )
        for reply in outcome.replies
        if reply.status == "failed"
    ]
    screened = [
        EventRecord(at=now, kind="screened", message=note, data={"step_index": plan.step_index})
        for note in outcome.screened
    ]
    above = [
        EventRecord(
            at=now,
            kind="memory-exceeded",
            message=f"{reply.client_id} took {over} bytes more than its limit: "
            f"{in_words(reply.metrics, reply.peak_memory_bytes)}",
            data={"client_id": reply.client_id, "step_index": plan.step_index},
        )
        for reply in outcome.replies
        if (over := excess(reply.metrics, reply.peak_memory_bytes))
    ]
    return RoundRecord(
        step_index=plan.step_index,
        task_index=step.task_index,
        round_index=step.round_index,
        kind=step.kind,
        committed_at=now,
        checkpoint=checkpoint,
        seconds=seconds,
        metrics=outcome.metrics,
        truncation={str(name): error for name, error in outcome.truncation.items()},
        drift={str(name): moved for name, moved in outcome.drift.items()},
        replies=outcome.replies,
        scores=outcome.scores,
        events=(*notes, *failures, *screened, *above),
    )
