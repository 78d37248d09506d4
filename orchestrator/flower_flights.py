"""Orders that stay under way on a Flower Grid while steps close around them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from orchestrator.buffer import Pair
from orchestrator.flower_courier import HAS_LEFT, WAS_GONE, Courier, Lookout
from orchestrator.flower_nodes import Nodes
from orchestrator.flower_post import Node, Post
from orchestrator.plans import Order
from orchestrator.spool import Refusal
from orchestrator.transport import OnWait, failure, late, to_reply
from strategies.types import ClientId, Reply

POLL_SECONDS: Final = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Flight:
    """An order under way, since a monotonic second."""

    order: Order
    node: Node
    num_bytes: int
    since: float


@dataclass(slots=True, kw_only=True)
class Flights:
    """The orders under way.  Replies that came before they were wanted wait in memory."""

    post: Post
    nodes: Nodes
    look_seconds: float
    _under_way: dict[str, Flight] = field(default_factory=dict)  # by letter
    _ready: list[Pair] = field(default_factory=list)

    @property
    def _courier(self) -> Courier:
        return Courier(self.post, self.nodes)

    def busy(self) -> frozenset[ClientId]:
        """Clients with an order under way."""
        orders = [flight.order for flight in self._under_way.values()]
        orders += [order for order, _ in self._ready]
        return frozenset(order.assignment.client_id for order in orders)

    def launch(self, orders: Sequence[Order], timeout_seconds: float) -> None:
        """Send ``orders``; one for a client that is gone is ready with its failure."""
        for order in orders:
            handed = self._courier.hand_over(order, timeout_seconds)
            if handed.letter is None:
                self._ready.append((order, reply_of(order, handed.num_bytes, WAS_GONE, 0.0)))
            else:
                name, node = handed.letter
                self._under_way[name] = Flight(
                    order=order, node=node, num_bytes=handed.num_bytes, since=time.monotonic()
                )

    def landed(
        self, enough: Callable[[Sequence[Pair]], bool], timeout_seconds: float, on_wait: OnWait
    ) -> list[Pair]:
        """Wait until what came in is ``enough``; the rest stays under way."""
        taken, deadline = list[Pair](), time.monotonic() + timeout_seconds
        lookout = Lookout(self.nodes, self.look_seconds)
        while True:
            in_time = time.monotonic() < deadline
            self._fetch()
            lookout.glance()
            self._give_up(timeout_seconds)
            while self._ready and not enough(taken):
                taken.append(self._ready.pop(0))
            on_wait(len(taken))
            if enough(taken) or not self._under_way or not in_time:
                return taken
            self.post.rest(POLL_SECONDS)

    def drop(self) -> list[Pair]:
        """Wait for nothing any more: what is under way, as if it had come too late."""
        now = time.monotonic()
        pairs = [(x.order, late(x.order, x.num_bytes, now - x.since)) for x in self._all()]
        pairs += self._ready
        self.post.close(self._under_way)
        self._under_way, self._ready = {}, []
        return pairs

    def _all(self) -> list[Flight]:
        return list(self._under_way.values())

    def _fetch(self) -> None:
        for letter, answer in self.post.fetch(self._under_way):
            flight = self._under_way.pop(letter)
            took = time.monotonic() - flight.since
            self._ready.append(
                (flight.order, reply_of(flight.order, flight.num_bytes, answer, took))
            )

    def _give_up(self, timeout_seconds: float) -> None:
        """Orders of clients that are gone, and those that are older than the timeout."""
        now = time.monotonic()
        for letter, flight in list(self._under_way.items()):
            took, order = now - flight.since, flight.order
            if self._courier.has_left(order.assignment.client_id, flight.node):
                reply = reply_of(order, flight.num_bytes, HAS_LEFT, took)
            elif took > timeout_seconds:
                reply = late(order, flight.num_bytes, timeout_seconds)
            else:
                continue
            self.post.close([letter])
            del self._under_way[letter]
            self._ready.append((order, reply))


def reply_of(order: Order, bytes_down: int, answer: bytes | Refusal, seconds: float) -> Reply:
    """The reply of what came back for ``order``."""
    if isinstance(answer, Refusal):
        fault = failure(order, answer.reason, answer.detail)
        return to_reply(order, bytes_down, fault, seconds)
    return to_reply(order, bytes_down, answer, seconds)
