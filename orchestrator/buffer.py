"""Buffered asynchronous training: a step closes with the first K updates, whenever they were begun.

Source: Nguyen et al. 2022 (FedBuff), arXiv:2106.06639, Alg. 1 and its polynomial staleness weight;
departs: the K updates are averaged by examples times staleness weight and that mean is applied
whole, where the paper divides by K; a task's end is a barrier, at which work under way is dropped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol, runtime_checkable

from orchestrator.config import RunConfig
from orchestrator.plans import Order, Plan
from orchestrator.sections import Buffer
from orchestrator.transport import OnWait, failure
from strategies.types import (
    Assignment,
    ClientId,
    FailureReason,
    GlobalState,
    Reply,
    Update,
)

BUFFER: Final = "buffer"
"""Name in a state's memories of the work under way, by client."""

Pair = tuple[Order, Reply]


@runtime_checkable
class Buffered(Protocol):
    """A transport whose orders may stay under way while later steps are exchanged."""

    def busy(self) -> frozenset[ClientId]:
        """Clients with an order under way."""
        ...

    def flush(
        self,
        orders: Sequence[Order],
        *,
        enough: Callable[[Sequence[Pair]], bool],
        timeout_seconds: float,
        on_wait: OnWait,
    ) -> list[Pair]:
        """Send ``orders`` and wait, whatever they were sent for, until ``enough`` came in.

        Each reply with its own order.  An order older than the timeout is a failure.
        """
        ...

    def drop(self) -> list[Pair]:
        """Wait no longer for anything under way: every order with its failure."""
        ...


def weight_of(staleness: int) -> float:
    """How much an update counts that was made for the state so many versions ago."""
    return 1 / math.sqrt(1 + staleness)


def staleness_of(plan: Plan, assignment: Assignment) -> int:
    """Training rounds closed since the state the assignment began with."""
    return plan.step.round_index - assignment.round_index


def is_buffered(config: RunConfig, plan: Plan) -> bool:
    """Whether the replies of this step go through the buffer."""
    return config.federation.buffer is not None and plan.step.kind == "train"


@dataclass(frozen=True, slots=True, kw_only=True)
class UnderWay:
    """An answer that arrives at a simulated second."""

    order: Order
    reply: Reply
    arrives: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Flush:
    """A step as it closes: ``plan`` has the orders answered, in client order, with ``replies``.

    ``remaining`` is still under way; ``seconds`` is the simulated time to the last reply taken.
    """

    plan: Plan
    replies: tuple[Reply, ...]
    remaining: tuple[UnderWay, ...] = ()
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Filling:
    """The buffer of one step; every method is a pure function of these fields."""

    plan: Plan
    buffer: Buffer

    def counts(self, pair: Pair) -> bool:
        """Whether a reply fills a place: an update that is not too stale."""
        order, reply = pair
        fresh = staleness_of(self.plan, order.assignment) <= self.buffer.max_staleness
        return fresh and isinstance(reply.result, Update)

    def enough(self, pairs: Sequence[Pair]) -> bool:
        """Whether all places are filled."""
        return sum(map(self.counts, pairs)) >= self.buffer.size

    def simulated(self, under_way: Iterable[UnderWay], now: float) -> Flush:
        """Take answers as they arrive on the simulated clock until all places are filled."""
        taken, remaining, ends = list[Pair](), list[UnderWay](), now
        for item in sorted(under_way, key=_arrival):
            if self.enough(taken):
                remaining.append(item)
                continue
            taken.append((item.order, item.reply))
            ends = max(ends, item.arrives)
        if self.last:
            taken += [self.dropped(item.order, item.reply) for item in remaining]
            remaining = []
        flush = self.closed(taken)
        return replace(flush, remaining=tuple(remaining), seconds=ends - now)

    @property
    def last(self) -> bool:
        """Whether the task's rounds end with this step."""
        return self.plan.step.round_index == self.plan.step.num_rounds - 1

    def closed(self, pairs: Sequence[Pair]) -> Flush:
        """The step of these replies, of which those that are too stale become failures."""
        ordered = sorted(pairs, key=lambda pair: pair[0].assignment.client_id)
        orders = tuple(order for order, _ in ordered)
        return Flush(
            plan=replace(self.plan, orders=orders),
            replies=tuple(self._judged(order, reply) for order, reply in ordered),
        )

    def dropped(self, order: Order, reply: Reply) -> Pair:
        """Work that is not waited for at the end of its task; its update is not sent."""
        detail = f"under way since round {order.assignment.round_index} when its task ended"
        result = failure(order, FailureReason.STALE, detail)
        return order, replace(reply, result=result, bytes_up=0)

    def _judged(self, order: Order, reply: Reply) -> Reply:
        staleness, limit = staleness_of(self.plan, order.assignment), self.buffer.max_staleness
        if staleness <= limit or not isinstance(reply.result, Update):
            return reply
        detail = f"made for the state {staleness} rounds ago, federation.buffer allows {limit}"
        return replace(reply, result=failure(order, FailureReason.STALE, detail))


def _arrival(item: UnderWay) -> tuple[float, int, ClientId]:
    assignment = item.order.assignment
    return item.arrives, assignment.step_index, assignment.client_id


def busy_in(state: GlobalState) -> frozenset[ClientId]:
    """Clients whose simulated work is under way."""
    return frozenset(ClientId(client) for client in state.memories.get(BUFFER, {}))
