"""Replies → the next state and what there is to record of them: refuse, aggregate, account."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from threadpoolctl import threadpool_limits

from orchestrator.config import RunConfig
from orchestrator.planner import Federation, Order, Plan, planned_shapes
from orchestrator.store.base import ReplyRecord, ScoreRecord
from orchestrator.transport import failure
from strategies.errors import RoundFailedError
from strategies.protocols import Contribution
from strategies.types import (
    Assignment,
    ClientFailure,
    FailureReason,
    GlobalState,
    GroupName,
    GroupSpec,
    LowRank,
    ParamKey,
    Reply,
    Update,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A closed step: the state after it and its records.

    ``aggregation_seconds`` is the time spent here, without waiting for replies.
    """

    state: GlobalState
    replies: tuple[ReplyRecord, ...]
    scores: tuple[ScoreRecord, ...]
    truncation: Mapping[GroupName, float]
    metrics: Mapping[str, float]
    aggregation_seconds: float


def close_step(
    state: GlobalState,
    plan: Plan,
    replies: Iterable[Reply],
    *,
    config: RunConfig,
    federation: Federation,
) -> Outcome:
    """Fold replies, in the order of the plan, into the next state.

    Reads ``replies`` once and keeps no update.  One BLAS thread, so that the sum of bits does not
    depend on the machine's cores.
    Raises: RoundFailedError, with every client's reason, below ``min_replies`` usable ones.
    """
    ledger = _Ledger(plan=plan, groups=federation.groups())
    start = time.monotonic()
    with threadpool_limits(limits=1, user_api="blas"):
        aggregated = config.aggregator().aggregate(
            state.aggregator_state,
            state.tensors,
            ledger.contributions(replies),
            config.adapter.scale,
        )
    spent = time.monotonic() - start - ledger.waited_seconds
    needed = config.federation.min_replies if plan.step.kind == "train" else 1
    if ledger.usable < min(needed, len(plan.orders)) or not plan.orders:
        raise RoundFailedError(_why(plan, ledger, needed))
    return Outcome(
        state=replace(
            state,
            step_index=state.step_index + 1,
            tensors=aggregated.tensors,
            aggregator_state=aggregated.state,
        ),
        replies=tuple(ledger.replies),
        scores=tuple(ledger.scores),
        truncation=aggregated.truncation,
        metrics=_mean_metrics(ledger.replies),
        aggregation_seconds=spent,
    )


@dataclass(slots=True)
class _Ledger:
    """Books every reply while the aggregator reads the good ones."""

    plan: Plan
    groups: Mapping[GroupName, GroupSpec]
    replies: list[ReplyRecord] = field(default_factory=list)
    scores: list[ScoreRecord] = field(default_factory=list)
    usable: int = 0
    waited_seconds: float = 0.0

    def contributions(self, replies: Iterable[Reply]) -> Iterator[Contribution]:
        stream, orders = iter(replies), iter(self.plan.orders)
        while True:
            start = time.monotonic()
            reply = next(stream, None)
            self.waited_seconds += time.monotonic() - start
            if reply is None:
                return
            order = next(orders)
            result = examined(reply.result, order, self.groups)
            self._book(order.assignment, replace(reply, result=result))
            if isinstance(result, Update) and result.delta:
                yield _contribution(result)

    def _book(self, assignment: Assignment, reply: Reply) -> None:
        self.replies.append(_reply_record(assignment, reply))
        if isinstance(reply.result, Update):
            self.usable += 1
            self.scores += _score_records(self.plan, reply.result)


def examined(
    result: Update | ClientFailure, order: Order, groups: Mapping[GroupName, GroupSpec]
) -> Update | ClientFailure:
    """The update if it answers its order in every respect, else the failure it amounts to."""
    if isinstance(result, ClientFailure):
        return result
    assignment = order.assignment
    expected = (assignment.assignment_id, assignment.client_id, assignment.plan_hash())
    found = (result.assignment_id, result.client_id, result.plan_hash)
    if found != expected:
        detail = f"answer {found}, expected {expected}"
        return failure(order, FailureReason.WRONG_PLAN, detail)
    shapes = {
        ParamKey(name, part): shape
        for name, plan in assignment.groups.items()
        for part, shape in planned_shapes(plan, groups[name]).items()
    }
    if detail := _wrong_shape(result, shapes) or _wrong_counts(result, assignment, groups):
        return failure(order, FailureReason.WRONG_SHAPE, detail)
    if detail := _not_finite(result):
        return failure(order, FailureReason.NOT_FINITE, detail)
    return result


def _wrong_shape(update: Update, shapes: Mapping[ParamKey, tuple[int, ...]]) -> str:
    if not update.delta and not any(c.any() for c in update.num_examples.values()):
        return ""  # evaluated only
    for key in sorted(shapes.keys() - update.delta.keys()):
        return f"{key} is missing, expected shape {shapes[key]}"
    for key in sorted(update.delta.keys() - shapes.keys()):
        return f"{key} is not part of the plan"
    for key, value in update.delta.items():
        if value.shape != shapes[key] or value.dtype != np.float32:
            return f"{key} is {value.dtype} {value.shape}, expected float32 {shapes[key]}"
    return ""


def _wrong_counts(
    update: Update, assignment: Assignment, groups: Mapping[GroupName, GroupSpec]
) -> str:
    if update.num_examples.keys() - assignment.groups.keys():
        return f"example counts for {sorted(update.num_examples)}, expected the planned groups"
    for name, plan in assignment.groups.items():
        count = update.num_examples.get(name)
        if count is None:
            if update.delta:
                return f"no example count for group {name}"
            continue
        rows = {shape[0] for shape in groups[name].parts.values()}
        per_row = not isinstance(plan, LowRank) and len(rows) == 1 and count.shape == (min(rows),)
        if not (count.shape == () or per_row):
            return f"example count of {name} has shape {count.shape}, expected () or one per row"
        if (count < 0).any():
            return f"example count of {name} is negative"
    return ""


def _not_finite(update: Update) -> str:
    for key, value in update.delta.items():
        if not np.isfinite(value).all():
            return f"{key} holds {int((~np.isfinite(value)).sum())} values that are not finite"
    return ""


def _contribution(update: Update) -> Contribution:
    weight = {name: count.astype(np.float64) for name, count in update.num_examples.items()}
    return Contribution(client_id=update.client_id, delta=update.delta, weight=weight)


def _reply_record(assignment: Assignment, reply: Reply) -> ReplyRecord:
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
        seconds={"total": reply.seconds} | (dict(update.seconds) if update else {}),
        metrics=dict(update.metrics) if update else {},
        peak_memory_bytes=update.peak_memory_bytes if update else 0,
    )


def _mean_metrics(replies: Iterable[ReplyRecord]) -> dict[str, float]:
    """The mean training loss, weighted by examples; empty where nobody trained."""
    losses = [(r.num_examples, r.metrics["loss"]) for r in replies if "loss" in r.metrics]
    total = sum(count for count, _ in losses)
    return {"loss": sum(count * loss for count, loss in losses) / total} if total else {}


def _score_records(plan: Plan, update: Update) -> Iterator[ScoreRecord]:
    mid_task = plan.step.kind == "train"
    for score in update.scores:
        yield ScoreRecord(
            client_id=update.client_id,
            after_task=plan.step.task_index,
            task_index=score.task_index,
            num_examples=score.num_examples,
            num_correct=score.num_correct,
            loss_sum=score.loss_sum,
            mid_task=mid_task,
        )


def _why(plan: Plan, ledger: _Ledger, needed: int) -> str:
    step = plan.step
    where = f"task {step.task_index}, round {step.round_index}"
    if not plan.orders:
        return f"{where}: no client holds examples of it; nobody could be asked"
    reasons = "\n".join(
        f"  - {reply.client_id}: {reply.failure_reason}: {reply.failure_detail}"
        for reply in ledger.replies
        if reply.status == "failed"
    )
    return f"{where}: {ledger.usable} usable replies, {needed} needed\n{reasons}"
