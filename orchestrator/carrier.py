"""A step's way to the clients and back: over the transport, simulated links and the buffer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from orchestrator.buffer import (
    BUFFER,
    Buffered,
    Filling,
    Flush,
    UnderWay,
    busy_in,
    is_buffered,
)
from orchestrator.config import RunConfig
from orchestrator.federation import Federation
from orchestrator.fleet import Fleet
from orchestrator.plans import Plan
from orchestrator.rounds import Outcome, TooFewRepliesError, close_step
from orchestrator.simulated import on_simulated_links
from orchestrator.transport import OnWait, Transport
from orchestrator.under_way import packed, unpacked
from strategies.types import ClientId, GlobalState, Reply, State


@dataclass(frozen=True, slots=True, kw_only=True)
class Carried:
    """The replies to ``plan``, whose orders may have been sent in an earlier step.

    ``under_way`` is what a checkpoint must keep of those still out; ``seconds`` the simulated time
    where that is not the longest reply's.
    """

    plan: Plan
    replies: Iterable[Reply]
    under_way: State = field(default_factory=dict)
    seconds: float | None = None

    def closed(self, state: GlobalState, config: RunConfig, federation: Federation) -> Outcome:
        """The step closed with these replies, and the state with what is still under way.

        Raises: TooFewRepliesError as ``close_step`` does.
        """
        try:
            outcome = close_step(
                state, self.plan, self.replies, config=config, federation=federation
            )
        except TooFewRepliesError as short:
            short.simulated_seconds = self._took(short.simulated_seconds)
            raise
        if self.seconds is None:
            return outcome
        memories = {k: v for k, v in outcome.state.memories.items() if k != BUFFER}
        if self.under_way:
            memories[BUFFER] = self.under_way
        state = replace(outcome.state, memories=memories)
        return replace(outcome, state=state, simulated_seconds=self.seconds)

    def _took(self, longest_seconds: float) -> float:
        return longest_seconds if self.seconds is None else self.seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Carrier:
    """Carries the steps of one run."""

    config: RunConfig
    transport: Transport

    def busy(self, state: GlobalState) -> frozenset[ClientId]:
        """Clients that are still at work for an earlier step."""
        if isinstance(self.transport, Buffered) and not self.config.links:
            return self.transport.busy()
        return busy_in(state)

    def carried(
        self,
        state: GlobalState,
        plan: Plan,
        fleet: Fleet,
        federation: Federation,
        on_wait: OnWait,
    ) -> Carried:
        """The replies of a step; nothing is waited for before they are read, but by a buffer."""
        buffer, now = self.config.federation.buffer, fleet.now + fleet.lost_seconds
        if buffer is not None and is_buffered(self.config, plan):
            filling = Filling(plan=plan, buffer=buffer)
            if isinstance(self.transport, Buffered) and not self.config.links:
                flush = self._awaited(self.transport, filling, on_wait)
            else:
                flush = self._clocked(state, filling, now, on_wait)
            return Carried(
                plan=_known(flush.plan, fleet, federation),
                replies=flush.replies,
                under_way=packed(flush.remaining),
                seconds=flush.seconds,
            )
        return Carried(plan=plan, replies=self._exchanged(plan, now, on_wait))

    def _exchanged(self, plan: Plan, now: float, on_wait: OnWait) -> Iterable[Reply]:
        timeout = patience(self.config, plan)
        replies = self.transport.exchange(plan.orders, timeout_seconds=timeout, on_wait=on_wait)
        return on_simulated_links(replies, plan, self.config, now)

    def _awaited(self, transport: Buffered, filling: Filling, on_wait: OnWait) -> Flush:
        """On real links: what comes in first."""
        pairs = transport.flush(
            filling.plan.orders,
            enough=filling.enough,
            timeout_seconds=patience(self.config, filling.plan),
            on_wait=on_wait,
        )
        if filling.last:
            pairs += [filling.dropped(*pair) for pair in transport.drop()]
        return filling.closed(pairs)

    def _clocked(self, state: GlobalState, filling: Filling, now: float, on_wait: OnWait) -> Flush:
        """On simulated links everybody answers at once, and the clock says who would be first.

        Without links all are equally fast: those asked first are first.
        """
        replies, plan = self._exchanged(filling.plan, now, on_wait), filling.plan
        begun = [
            UnderWay(order=order, reply=reply, arrives=now + (reply.seconds if reply.link else 0.0))
            for order, reply in zip(plan.orders, replies, strict=True)
        ]
        return filling.simulated([*unpacked(state.memories.get(BUFFER, {})), *begun], now)


def patience(config: RunConfig, plan: Plan) -> float:
    """Seconds to wait for replies: on real links nobody is waited for past the deadline."""
    limit, deadline = config.federation.round_timeout_seconds, config.federation.deadline_seconds
    if deadline is None or config.links or plan.step.kind not in ("train", "replay"):
        return limit
    return min(limit, deadline)


def _known(plan: Plan, fleet: Fleet, federation: Federation) -> Plan:
    """``plan`` with the profiles of all whose orders it has, also of those who have left."""
    profiles = {c.client_id: fleet.known(c) for c in (*federation.absent, *federation.clients)}
    profiles |= {c.client_id: c for c in plan.view.clients}
    answered = [order.assignment.client_id for order in plan.orders]
    clients = tuple(profiles[c] for c in sorted(profiles) if c in answered)
    return replace(plan, view=replace(plan.view, clients=clients))
