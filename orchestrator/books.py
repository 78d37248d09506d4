"""What is put on record of a reply, and what strategies are told of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from orchestrator import memory
from orchestrator.learning import Evidences
from orchestrator.plans import Plan
from orchestrator.recall import drifts
from orchestrator.store.base import ReplyRecord
from strategies.cost import CostModel
from strategies.types import (
    Assignment,
    ClientFailure,
    ClientProfile,
    GroupName,
    LowRank,
    Observation,
    Reply,
    Update,
)


def observation(assignment: Assignment, reply: Reply) -> Observation:
    """One client's round as strategies see it."""
    update = reply.result if isinstance(reply.result, Update) else None
    return Observation(
        client_id=assignment.client_id,
        groups=assignment.groups,
        answered=update is not None,
        loss=update.metrics.get("loss") if update else None,
        bytes_down=reply.bytes_down,
        bytes_up=reply.bytes_up,
        seconds=reply.seconds,
        evidence=Evidences.of(update) if update else {},
        remembered=update.remembered if update else (),
    )


def mean_drift(seen: Sequence[Observation]) -> dict[GroupName, float]:
    """Per group trained, the root of the mean squared move of a value, averaged over clients."""
    moves = defaultdict[GroupName, list[float]](list)
    for group, drift in drifts(seen):
        moves[group].append(drift)
    return {group: sum(found) / len(found) for group, found in sorted(moves.items())}


def predicted(assignment: Assignment, plan: Plan) -> dict[str, float]:
    """What a training assignment was planned from, by metric; nothing for others.

    The cost model's expectations, and the client's link as it was known by then.
    """
    if assignment.work is None:
        return {}
    profile = next(c for c in plan.view.clients if c.client_id == assignment.client_id)
    costs, plans = CostModel.of(plan.view.groups, plan.view.budget, profile), assignment.groups
    work, parts = assignment.work, costs
    if work.micro_batch_size:
        parts = replace(costs, budget=replace(costs.budget, batch_size=work.micro_batch_size))
    measured = {
        "predicted_seconds": costs.compute_seconds(profile, plans),
        "uplink_bytes_per_second": profile.uplink_bytes_per_second,
        "downlink_bytes_per_second": profile.downlink_bytes_per_second,
        "link_error": profile.link_error,
    }
    return {
        "flops": work.steps * costs.flops_per_step(plans),
        "predicted_memory_bytes": parts.training_bytes(plans),
        "predicted_bytes_up": costs.bytes_up(plans) + costs.message_bytes(plans),
        **{name: value for name, value in measured.items() if value is not None},
        **memory.predictions(work, costs, plans, profile),
    }


def reply_record(
    assignment: Assignment,
    reply: Reply,
    planned_from: Mapping[str, float],
    client: ClientProfile | None = None,
) -> ReplyRecord:
    """The row of a reply; ``planned_from`` are its assignment's predictions.

    ``client`` is who answered, None where it is unknown by now.
    """
    result, ok = reply.result, isinstance(reply.result, Update)
    update = result if isinstance(result, Update) else None
    fault = result if isinstance(result, ClientFailure) else None
    return ReplyRecord(
        assignment_id=assignment.assignment_id,
        client_id=assignment.client_id,
        status="ok" if ok else "failed",
        failure_reason=fault.reason.value if fault else None,
        failure_detail=fault.detail if fault else None,
        num_examples=int(update.metrics.get("num_examples", 0)) if update else 0,
        ranks={n: p.rank if isinstance(p, LowRank) else 0 for n, p in assignment.groups.items()},
        bytes_down=reply.bytes_down,
        bytes_up=reply.bytes_up,
        seconds=_seconds(reply),
        metrics={**(update.metrics if update else {}), **planned_from},
        peak_memory_bytes=update.peak_memory_bytes if update else 0,
        client_kind=client.kind if client else None,
    )


def _seconds(reply: Reply) -> dict[str, float]:
    """The client's own phases and, as far as links are simulated, what those make of them."""
    measured = dict(reply.result.seconds) if isinstance(reply.result, Update) else {}
    return {**measured, **reply.link, "total": reply.seconds}
