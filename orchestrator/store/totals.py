"""What a step and a client come to, summed as steps are committed; pure.

Pages and listings read these sums, so that what they cost does not grow with the number of replies.
They are written in the transaction that writes the replies, by the same functions that sum up the
replies of a run that was read whole: both give the same numbers.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from orchestrator.store.base import ReplyRecord, RoundKind, RoundRecord
from strategies.types import ClientKind

Number = TypeVar("Number", int, float)
Key = TypeVar("Key", str, int)


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundTotals:
    """The replies of one step, summed.

    ``seconds`` are the clients' by phase; ``failures`` who failed and why, in the order of the
    replies; ``ranks`` how many pairs of client and group were trained at each rank, 0 is dense,
    ``asked_ranks`` how many were asked to be.
    ``replayed`` counts examples from memories.  Of those trainings that counted new examples too,
    ``num_trained`` were trained on in all, ``num_replayed`` of them from memories, which took
    ``replay_seconds``.  ``staleness`` is the mean where it was measured.  The ``mid_`` scores are
    those of the state the step began with.  ``truncation_max`` is the largest over groups, None
    where nothing was cut.
    """

    clients_ok: int = 0
    clients_failed: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    truncation_max: float | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    failures: tuple[tuple[str, str | None], ...] = ()
    ranks: Mapping[int, int] = field(default_factory=dict)
    asked_ranks: Mapping[int, int] = field(default_factory=dict)
    replayed: float = 0.0
    num_replayed: float = 0.0
    num_trained: float = 0.0
    replay_seconds: float = 0.0
    staleness: float | None = None
    mid_correct: int = 0
    mid_examples: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCost:
    """What a committed step took; ``seconds`` is the server's time by phase."""

    kind: RoundKind
    task_index: int
    seconds: Mapping[str, float]
    bytes_up: int
    bytes_down: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """A committed step without its replies and scores."""

    record: RoundRecord
    totals: RoundTotals


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientTotals:
    """A client over a run.

    ``kind`` is that of its last reply that has one.  ``asked`` counts its replies, ``rounds`` those
    it trained for.  ``failures`` counts by reason, ``groups`` how often it trained each group.
    What begins with ``last_`` is of the last step it trained in, −1 before that.
    """

    client_id: str
    kind: ClientKind | None = None
    asked: int = 0
    rounds: int = 0
    num_examples: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    failed: int = 0
    peak_memory_bytes: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)
    failures: Mapping[str, int] = field(default_factory=dict)
    groups: Mapping[str, int] = field(default_factory=dict)
    last_step: int = -1
    last_ranks: Mapping[str, int] = field(default_factory=dict)
    last_metrics: Mapping[str, float] = field(default_factory=dict)
    last_peak_memory_bytes: int = 0

    def after(self, step_index: int, reply: ReplyRecord) -> ClientTotals:
        """With one more reply."""
        trained = bool(reply.num_examples)
        summed = replace(
            self,
            kind=reply.client_kind or self.kind,
            asked=self.asked + 1,
            rounds=self.rounds + trained,
            num_examples=self.num_examples + reply.num_examples,
            bytes_up=self.bytes_up + reply.bytes_up,
            bytes_down=self.bytes_down + reply.bytes_down,
            peak_memory_bytes=max(self.peak_memory_bytes, reply.peak_memory_bytes),
            seconds=_added(self.seconds, reply.seconds),
        )
        if reply.status == "failed":
            failures = _added(self.failures, {reply.failure_reason or "unknown": 1})
            summed = replace(summed, failed=self.failed + 1, failures=failures)
        if not trained:
            return summed
        summed = replace(summed, groups=_added(self.groups, dict.fromkeys(reply.ranks, 1)))
        return summed if step_index < self.last_step else _last(summed, step_index, reply)


def round_totals(record: RoundRecord) -> RoundTotals:
    """The sums of a step that has its replies and scores."""
    replies, mid = record.replies, [score for score in record.scores if score.mid_task]
    failures = tuple((r.client_id, r.failure_reason) for r in replies if r.status == "failed")
    num_replayed, num_trained, replay_seconds = _replay(replies)
    return RoundTotals(
        clients_ok=len(replies) - len(failures),
        clients_failed=len(failures),
        bytes_up=sum(reply.bytes_up for reply in replies),
        bytes_down=sum(reply.bytes_down for reply in replies),
        truncation_max=finite(max(record.truncation.values(), default=None)),
        seconds=_phases(replies),
        failures=failures,
        ranks=rank_counts(reply.ranks for reply in replies if reply.num_examples),
        asked_ranks=rank_counts(reply.ranks for reply in replies),
        replayed=sum(reply.metrics.get("replayed", 0.0) for reply in replies),
        num_replayed=num_replayed,
        num_trained=num_trained,
        replay_seconds=replay_seconds,
        staleness=_mean([reply.metrics.get("staleness", math.nan) for reply in replies]),
        mid_correct=sum(score.num_correct for score in mid),
        mid_examples=sum(score.num_examples for score in mid),
    )


def finite(value: Any) -> float | None:
    """``value`` if it is a finite number."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def summed(many: Iterable[Mapping[Key, Number]]) -> dict[Key, Number]:
    """Numbers by name, each added up over all that have it."""
    found = dict[Key, Number]()
    for each in many:
        found = _added(found, each)
    return found


def client_totals(records: Iterable[RoundRecord]) -> list[ClientTotals]:
    """Of all clients that were ever asked, by id."""
    return sorted(added({}, records).values(), key=lambda client: client.client_id)


def added(
    found: Mapping[str, ClientTotals], records: Iterable[RoundRecord]
) -> dict[str, ClientTotals]:
    """``found`` by client id, with the replies of more steps."""
    clients = dict(found)
    for record in records:
        for reply in record.replies:
            before = clients.get(reply.client_id) or ClientTotals(client_id=reply.client_id)
            clients[reply.client_id] = before.after(record.step_index, reply)
    return clients


def step_of(record: RoundRecord) -> StepRecord:
    """A step that was read whole, without its replies and scores."""
    return StepRecord(record=replace(record, replies=(), scores=()), totals=round_totals(record))


def _last(summed: ClientTotals, step_index: int, reply: ReplyRecord) -> ClientTotals:
    return replace(
        summed,
        last_step=step_index,
        last_ranks=dict(reply.ranks),
        last_metrics=dict(reply.metrics),
        last_peak_memory_bytes=reply.peak_memory_bytes,
    )


def _added(sums: Mapping[Key, Number], more: Mapping[Key, Number]) -> dict[Key, Number]:
    found = dict(sums)
    for name, value in more.items():
        found[name] = found[name] + value if name in found else value
    return found


def rank_counts(ranks: Iterable[Mapping[str, int]]) -> dict[int, int]:
    """How often each rank is there, by rank."""
    return dict(sorted(Counter(rank for each in ranks for rank in each.values()).items()))


def _phases(replies: Sequence[ReplyRecord]) -> dict[str, float]:
    """Seconds by phase, summed over clients; ``total`` counts from push to reply."""
    phases = defaultdict[str, float](float)
    for reply in replies:
        for phase, seconds in reply.seconds.items():
            phases[phase] += seconds
    return dict(phases)


def _replay(replies: Sequence[ReplyRecord]) -> tuple[float, float, float]:
    """Examples replayed and trained on, each time a step is taken on them, and replay's seconds.

    The seconds are each training's, times the share of its examples that were replayed.
    """
    replayed = trained = spent = 0.0
    for reply in replies:
        again, new = reply.metrics.get("replayed", 0.0), reply.metrics.get("new")
        if new is None or not again + new:
            continue  # it did not train, or was recorded before new examples were counted
        replayed, trained = replayed + again, trained + again + new
        spent += reply.seconds.get("train", 0.0) * again / (again + new)
    return replayed, trained, spent


def _mean(values: Sequence[float]) -> float | None:
    """Of what was measured."""
    measured = [value for value in values if math.isfinite(value)]
    return sum(measured) / len(measured) if measured else None
