"""Replies → the next state and what there is to record of them: refuse, aggregate, account."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from threadpoolctl import threadpool_limits

from orchestrator.books import mean_drift, observation, predicted, reply_record
from orchestrator.buffer import is_buffered, staleness_of, weight_of
from orchestrator.config import RunConfig
from orchestrator.examine import examined
from orchestrator.federation import Federation
from orchestrator.heads import HeadSums
from orchestrator.learning import learnt
from orchestrator.merging import settled
from orchestrator.outgoing import Receipts, changes
from orchestrator.plans import AGGREGATION, Plan
from orchestrator.screening import Answer, Screening
from orchestrator.store.base import ReplyRecord, ScoreRecord
from strategies.compression.chain import Chain
from strategies.errors import RoundFailedError
from strategies.protocols import Contribution, Tally, Tallying
from strategies.rng import rng_for
from strategies.types import (
    ClientId,
    ClientProfile,
    GlobalState,
    GroupName,
    GroupSpec,
    Observation,
    Reply,
    Update,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A closed step: the state after it and its records.

    ``aggregation_seconds`` is the time spent here, without waiting for replies;
    ``simulated_seconds`` what the step took on simulated links, 0 on real ones; ``drift`` is as in
    ``RoundRecord``; ``screened`` says whose updates did not count, or not in full, and why.
    """

    state: GlobalState
    replies: tuple[ReplyRecord, ...]
    scores: tuple[ScoreRecord, ...]
    truncation: Mapping[GroupName, float]
    metrics: Mapping[str, float]
    aggregation_seconds: float
    simulated_seconds: float = 0.0
    drift: Mapping[GroupName, float] = field(default_factory=dict)
    screened: tuple[str, ...] = ()


class TooFewRepliesError(RoundFailedError):
    """A step that cannot be closed, with the records of the replies it got."""

    def __init__(self, why: str, ledger: _Ledger) -> None:
        self.replies = tuple(ledger.replies)
        self.simulated_seconds = ledger.simulated_seconds
        super().__init__(why)


def close_step(
    state: GlobalState,
    plan: Plan,
    replies: Iterable[Reply],
    *,
    config: RunConfig,
    federation: Federation,
) -> Outcome:
    """Fold replies, in the order of the plan, into the next state.

    Reads ``replies`` once and keeps no update, except where they are screened.  One BLAS thread, so
    that the sum of bits does not depend on the machine's cores.
    Raises: TooFewRepliesError, with every client's reason, below ``min_replies`` usable ones.
    """
    merger = config.merger()
    ledger = _Ledger(
        tally=merger.tally(state.tensors) if isinstance(merger, Tallying) else None,
        plan=plan,
        groups=federation.groups(),
        clients={c.client_id: c for c in (*federation.absent, *federation.clients)},
        chain=config.compressors(),
        receipts=Receipts(dict(state.holdings)),
        sums=HeadSums.of(config, federation, state, plan.step),
        buffered=is_buffered(config, plan),
        screening=Screening.of(config, state, plan),
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
        # A merger that finds nothing to look at keeps the model it has.
        needed = config.federation.min_replies if step.kind == "train" else int(not step.refines)
        if ledger.usable < min(needed, len(plan.orders)) or not (plan.orders or plan.idle):
            raise TooFewRepliesError(_why(plan, ledger, needed), ledger)
        after = learnt(state, plan, aggregated, ledger.observations, config)
        if ledger.sums:
            after = ledger.sums.solved(after)
        moves = ledger.tally.moves() if ledger.tally else {}
        after, cut = settled(state, ledger.screening.remembered(after), plan, moves, config)
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
        truncation=_together(aggregated.truncation, cut),
        metrics=_mean_metrics(ledger.replies),
        aggregation_seconds=spent,
        simulated_seconds=ledger.simulated_seconds,
        drift=mean_drift(ledger.observations),
        screened=tuple(ledger.screening.notes),
    )


@dataclass(slots=True, kw_only=True)
class _Ledger:
    """Books every reply while the aggregator reads the good ones."""

    plan: Plan
    groups: Mapping[GroupName, GroupSpec]
    clients: Mapping[ClientId, ClientProfile]
    chain: Chain
    receipts: Receipts
    sums: HeadSums | None
    tally: Tally | None
    buffered: bool
    screening: Screening
    replies: list[ReplyRecord] = field(default_factory=list)
    scores: list[ScoreRecord] = field(default_factory=list)
    observations: list[Observation] = field(default_factory=list)
    usable: int = 0
    waited_seconds: float = 0.0
    simulated_seconds: float = 0.0

    def contributions(self, replies: Iterable[Reply]) -> Iterator[Contribution]:
        for answer in self.screening.passed(self._answers(replies)):
            self._book(answer)
            if answer.contribution:
                if self.tally:
                    self.tally.add(answer.contribution)
                yield answer.contribution

    def _answers(self, replies: Iterable[Reply]) -> Iterator[Answer]:
        stream, orders = iter(replies), iter(self.plan.orders)
        while True:
            start = time.monotonic()
            reply = next(stream, None)
            self.waited_seconds += time.monotonic() - start
            if reply is None:
                return
            order = next(orders)
            result = examined(reply.result, order, self.groups, self.chain, self.clients)
            if self.sums:
                result = self.sums.absorb(result, order.assignment)
            contribution = None
            if isinstance(result, Update) and result.delta:
                contribution = _contribution(result, staleness_of(self.plan, order.assignment))
            reply = replace(reply, result=result)
            yield Answer(order=order, reply=reply, contribution=contribution)

    def _book(self, answer: Answer) -> None:
        order, reply, assignment = answer.order, answer.reply, answer.order.assignment
        planned_from = {**predicted(assignment, self.plan), **answer.numbers}
        if self.buffered:
            planned_from["staleness"] = float(staleness_of(self.plan, assignment))
        client = self.clients.get(assignment.client_id)
        self.replies.append(reply_record(assignment, reply, planned_from, client))
        self.receipts.note(assignment, order.holding, reply)
        self.observations.append(observation(assignment, reply))
        if reply.link:
            self.simulated_seconds = max(self.simulated_seconds, reply.seconds)
        if isinstance(reply.result, Update):
            self.usable += 1
            self.scores += _score_records(self.plan, reply.result)


def _contribution(update: Update, staleness: int) -> Contribution:
    scale = weight_of(staleness)  # 1 of an update made for the state at hand
    weight = {name: scale * count.astype(np.float64) for name, count in update.num_examples.items()}
    return Contribution(client_id=update.client_id, delta=update.delta, weight=weight)


def _together(
    first: Mapping[GroupName, float], second: Mapping[GroupName, float]
) -> dict[GroupName, float]:
    """The errors of two cuts, one after the other: at most their sum."""
    groups = dict.fromkeys((*first, *second))
    return {group: first.get(group, 0.0) + second.get(group, 0.0) for group in groups}


def _mean_metrics(replies: Iterable[ReplyRecord]) -> dict[str, float]:
    """The mean training loss, weighted by examples; empty where nobody trained."""
    losses = [(r.num_examples, r.metrics["loss"]) for r in replies if "loss" in r.metrics]
    total = sum(count for count, _ in losses)
    return {"loss": sum(count * loss for count, loss in losses) / total} if total else {}


def _score_records(plan: Plan, update: Update) -> Iterator[ScoreRecord]:
    mid_task = plan.step.kind != "evaluate"
    for score in update.scores:
        yield ScoreRecord(
            client_id=update.client_id,
            after_task=plan.step.task_index,
            task_index=score.task_index,
            num_examples=score.num_examples,
            num_correct=score.num_correct,
            loss_sum=score.loss_sum,
            mid_task=mid_task,
            num_lost=score.num_lost,
            num_gained=score.num_gained,
            num_compared=score.num_compared,
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
