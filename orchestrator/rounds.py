"""Replies → the next state and what there is to record of them: refuse, aggregate, account."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from threadpoolctl import threadpool_limits

from orchestrator.config import RunConfig
from orchestrator.learning import Evidences, learnt
from orchestrator.outgoing import Receipts, changes
from orchestrator.planner import AGGREGATION, Federation, Order, Plan, assigned_shapes
from orchestrator.store.base import ReplyRecord, ScoreRecord
from orchestrator.transport import failure
from strategies.compression.chain import Chain, decompress
from strategies.cost import CostModel
from strategies.errors import RoundFailedError, WireError
from strategies.protocols import Contribution
from strategies.rng import rng_for
from strategies.types import (
    Assignment,
    ClientFailure,
    FailureReason,
    GlobalState,
    GroupName,
    GroupSpec,
    LowRank,
    Observation,
    ParamKey,
    Reply,
    Update,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A closed step: the state after it and its records.

    ``aggregation_seconds`` is the time spent here, without waiting for replies;
    ``simulated_seconds`` what the step took on simulated links, 0 on real ones.
    """

    state: GlobalState
    replies: tuple[ReplyRecord, ...]
    scores: tuple[ScoreRecord, ...]
    truncation: Mapping[GroupName, float]
    metrics: Mapping[str, float]
    aggregation_seconds: float
    simulated_seconds: float = 0.0


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
    ledger = _Ledger(
        plan=plan,
        groups=federation.groups(),
        chain=config.compressors(),
        receipts=Receipts(dict(state.holdings)),
    )
    start, step = time.monotonic(), plan.step
    with threadpool_limits(limits=1, user_api="blas"):
        aggregated = config.aggregator().aggregate(
            state.memories.get(AGGREGATION, {}),
            state.tensors,
            ledger.contributions(replies),
            config.adapter.scale,
            rng_for(config.seed, "aggregation", step.task_index, step.round_index),
        )
        needed = config.federation.min_replies if step.kind == "train" else 1
        if ledger.usable < min(needed, len(plan.orders)) or not plan.orders:
            raise RoundFailedError(_why(plan, ledger, needed))
        after = learnt(state, plan, aggregated, ledger.observations, config)
    spent = time.monotonic() - start - ledger.waited_seconds
    changed = {**state.changed, **changes(state.tensors, after.tensors, state.step_index + 1)}
    return Outcome(
        state=replace(
            after,
            step_index=state.step_index + 1,
            changed=changed,
            holdings=ledger.receipts.of_use(changed),
        ),
        replies=tuple(ledger.replies),
        scores=tuple(ledger.scores),
        truncation=aggregated.truncation,
        metrics=_mean_metrics(ledger.replies),
        aggregation_seconds=spent,
        simulated_seconds=ledger.simulated_seconds,
    )


@dataclass(slots=True, kw_only=True)
class _Ledger:
    """Books every reply while the aggregator reads the good ones."""

    plan: Plan
    groups: Mapping[GroupName, GroupSpec]
    chain: Chain
    receipts: Receipts
    replies: list[ReplyRecord] = field(default_factory=list)
    scores: list[ScoreRecord] = field(default_factory=list)
    observations: list[Observation] = field(default_factory=list)
    usable: int = 0
    waited_seconds: float = 0.0
    simulated_seconds: float = 0.0

    def contributions(self, replies: Iterable[Reply]) -> Iterator[Contribution]:
        stream, orders = iter(replies), iter(self.plan.orders)
        while True:
            start = time.monotonic()
            reply = next(stream, None)
            self.waited_seconds += time.monotonic() - start
            if reply is None:
                return
            order = next(orders)
            result = examined(reply.result, order, self.groups, self.chain)
            self._book(order, replace(reply, result=result))
            if isinstance(result, Update) and result.delta:
                yield _contribution(result)

    def _book(self, order: Order, reply: Reply) -> None:
        assignment = order.assignment
        self.replies.append(_reply_record(assignment, reply, _predicted(assignment, self.plan)))
        self.receipts.note(assignment, order.holding, reply)
        self.observations.append(_observation(assignment, reply))
        if reply.link:
            self.simulated_seconds = max(self.simulated_seconds, reply.seconds)
        if isinstance(reply.result, Update):
            self.usable += 1
            self.scores += _score_records(self.plan, reply.result)


def examined(
    result: Update | ClientFailure,
    order: Order,
    groups: Mapping[GroupName, GroupSpec],
    chain: Chain = (),
) -> Update | ClientFailure:
    """The update, decompressed, if it answers its order in every respect, else the failure."""
    if isinstance(result, ClientFailure):
        return result
    assignment = order.assignment
    expected = (assignment.assignment_id, assignment.client_id, assignment.plan_hash())
    found = (result.assignment_id, result.client_id, result.plan_hash)
    if found != expected:
        detail = f"answer {found}, expected {expected}"
        return failure(order, FailureReason.WRONG_PLAN, detail)
    shapes = assigned_shapes(assignment, groups)
    try:
        update = replace(result, delta=decompress(result.delta, chain, shapes))
    except WireError as error:
        return failure(order, FailureReason.MALFORMED, str(error))
    if detail := _wrong_shape(update, shapes) or _wrong_counts(update, assignment, groups):
        return failure(order, FailureReason.WRONG_SHAPE, detail)
    if detail := _not_finite(update):
        return failure(order, FailureReason.NOT_FINITE, detail)
    if detail := Evidences.unasked(update, assignment):
        return failure(order, FailureReason.WRONG_SHAPE, detail)
    return update


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
    for key, value in [*update.delta.items(), *update.sketches.items()]:
        if not np.isfinite(value).all():
            return f"{key} holds {int((~np.isfinite(value)).sum())} values that are not finite"
    for group, values in update.statistics.items():
        for name, number in values.items():
            if not np.isfinite(number):
                return f"{name} of {group} is {number}"
    return ""


def _observation(assignment: Assignment, reply: Reply) -> Observation:
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
    )


def _predicted(assignment: Assignment, plan: Plan) -> dict[str, float]:
    """What a training assignment was planned from, by metric; nothing for others.

    The cost model's expectations, and the client's link as it was known by then.
    """
    if assignment.work is None:
        return {}
    profile = next(c for c in plan.view.clients if c.client_id == assignment.client_id)
    costs, plans = CostModel.of(plan.view.groups, plan.view.budget, profile), assignment.groups
    measured = {
        "predicted_seconds": costs.compute_seconds(profile, plans),
        "uplink_bytes_per_second": profile.uplink_bytes_per_second,
        "downlink_bytes_per_second": profile.downlink_bytes_per_second,
        "link_error": profile.link_error,
    }
    return {
        "flops": assignment.work.steps * costs.flops_per_step(plans),
        "predicted_memory_bytes": costs.training_bytes(plans),
        "predicted_bytes_up": costs.bytes_up(plans) + costs.message_bytes(plans),
        **{name: value for name, value in measured.items() if value is not None},
    }


def _contribution(update: Update) -> Contribution:
    weight = {name: count.astype(np.float64) for name, count in update.num_examples.items()}
    return Contribution(client_id=update.client_id, delta=update.delta, weight=weight)


def _reply_record(
    assignment: Assignment, reply: Reply, predicted: Mapping[str, float]
) -> ReplyRecord:
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
        metrics={**(update.metrics if update else {}), **predicted},
        peak_memory_bytes=update.peak_memory_bytes if update else 0,
    )


def _seconds(reply: Reply) -> dict[str, float]:
    """The client's own phases and, as far as links are simulated, what those make of them."""
    measured = dict(reply.result.seconds) if isinstance(reply.result, Update) else {}
    return {**measured, **reply.link, "total": reply.seconds}


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
        return f"{where}: nobody could be asked: {'; '.join(plan.notes)}"
    reasons = "\n".join(
        f"  - {reply.client_id}: {reply.failure_reason}: {reply.failure_detail}"
        for reply in ledger.replies
        if reply.status == "failed"
    )
    return f"{where}: {ledger.usable} usable replies, {needed} needed\n{reasons}"
