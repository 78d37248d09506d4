"""Transport over a Flower Grid: our own push and pull, our own deadlines."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from flwr.app import MessageType

from orchestrator.attendance import Changes, LateReply
from orchestrator.buffer import Pair
from orchestrator.federation import Federation, agree
from orchestrator.flower_courier import HAS_LEFT, WAS_GONE, Courier, Lookout
from orchestrator.flower_flights import POLL_SECONDS, Flights, reply_of
from orchestrator.flower_nodes import Nodes
from orchestrator.flower_post import Grid, Node, Post
from orchestrator.plans import Order
from orchestrator.spool import Refusal, Spool
from orchestrator.transport import OnWait, late
from strategies.errors import TransportError
from strategies.types import ClientId, GroupName, Reply, Tensors, client_ids
from strategies.wire import decode_profile, encode_recipe

# So many clients are asked for the base values before giving up.
_ASKED_FOR_VALUES: Final = 3

_STEPS_PER_OCTAVE: Final = 7  # 2^(1/7) is 1.10

_Sent = dict[str, tuple[ClientId, Node]]
"""Letters with the client each is for and the node it went to."""


@dataclass(slots=True)
class FlowerTransport:
    """Talks to SuperNodes, real or simulated: to ``num_clients`` when all are there.

    ``min_clients`` of them are enough to begin, all by default.  Node ids are random and nodes
    appear in any order; which client lives on which node is learnt from the profiles, and replies
    are handed on in the order of the orders.  While it waits, it looks every ``look_seconds`` who
    is there.
    """

    grid: Grid
    num_clients: int
    min_clients: int | None = None
    look_seconds: float = 2.0
    _post: Post = field(init=False)
    _nodes: Nodes = field(init=False)
    _flights: Flights = field(init=False)

    def __post_init__(self) -> None:
        self._post = Post(self.grid)
        self._nodes = Nodes(self._post, frozenset(client_ids(self.num_clients)))
        self._flights = Flights(post=self._post, nodes=self._nodes, look_seconds=self.look_seconds)

    @property
    def _courier(self) -> Courier:
        return Courier(self._post, self._nodes)

    def federation(self, recipe: str, *, timeout_seconds: float, on_wait: OnWait) -> Federation:
        self._nodes.request = encode_recipe(recipe, ())
        self._nodes.patience_seconds = timeout_seconds
        needed = self.min_clients or self.num_clients
        found = self.changes(at_least=needed, timeout_seconds=timeout_seconds, on_wait=on_wait)
        if len(found.joined) < needed:
            connected = len(self._nodes.connected)
            raise TransportError(
                f"{len(found.joined)} of {self.num_clients} clients could take part, {needed} "
                f"needed ({timeout_seconds:g} s were allowed; {connected} SuperNodes are connected)"
                + "".join(f"\n  - {fault}" for fault in found.faults)
            )
        return agree(found.joined)

    def changes(self, *, at_least: int, timeout_seconds: float, on_wait: OnWait) -> Changes:
        deadline = time.monotonic() + timeout_seconds
        while True:
            self._nodes.look()
            there = len(self._nodes.homes)
            asked_all = len(self._nodes.connected) >= self.num_clients and not self._nodes.expecting
            if there >= at_least or asked_all or time.monotonic() >= deadline:
                return self._nodes.changes()
            on_wait(there)
            self._post.rest(POLL_SECONDS)

    def late_replies(self) -> tuple[LateReply, ...]:
        return self._post.late()

    def busy(self) -> frozenset[ClientId]:
        return self._flights.busy()

    def flush(
        self,
        orders: Sequence[Order],
        *,
        enough: Callable[[Sequence[Pair]], bool],
        timeout_seconds: float,
        on_wait: OnWait,
    ) -> list[Pair]:
        self._flights.launch(orders, timeout_seconds)
        return self._flights.landed(enough, timeout_seconds, on_wait)

    def drop(self) -> list[Pair]:
        return self._flights.drop()

    def base_values(
        self, recipe: str, groups: Sequence[GroupName], *, timeout_seconds: float
    ) -> Tensors:
        request, faults = encode_recipe(recipe, groups), list[str]()
        asked = sorted(self._nodes.homes)[:_ASKED_FOR_VALUES]
        for client in asked:
            node, patience = self._nodes.homes[client], timeout_seconds / len(asked)
            letter = self._post.send(node, request, MessageType.QUERY, patience)
            sent = {letter: (client, node)} if letter else {}
            for _, answer in self._answers(sent, time.monotonic() + patience, lambda _: None):
                if isinstance(answer, bytes):
                    return decode_profile(answer)[1]
                faults.append(f"{client}: {answer.detail}")
            self._post.close(sent)
        raise TransportError(
            f"no base values within {timeout_seconds:g} s from {', '.join(asked) or 'nobody'}"
            + "".join(f"\n  - {fault}" for fault in faults)
        )

    def exchange(
        self, orders: Sequence[Order], *, timeout_seconds: float, on_wait: OnWait
    ) -> Iterator[Reply]:
        start = time.monotonic()
        with TemporaryDirectory(prefix="perennial-replies-") as folder:
            spool, following = Spool(Path(folder)), 0
            sent, sizes, pushed = self._send_all(orders, spool, timeout_seconds)
            index_of = {order.assignment.client_id: i for i, order in enumerate(orders)}
            try:
                for letter, answer in self._answers(sent, start + timeout_seconds, on_wait):
                    index = index_of[sent[letter][0]]
                    spool.put(index, answer, time.monotonic() - pushed[index])
                    while (ready := spool.take(following)) is not None:
                        yield reply_of(orders[following], sizes[following], *ready)
                        following += 1
            finally:
                self._post.close(sent)
            for index in range(following, len(orders)):
                ready = spool.take(index)
                yield (
                    late(orders[index], sizes[index], timeout_seconds)
                    if ready is None
                    else reply_of(orders[index], sizes[index], *ready)
                )

    def _send_all(
        self, orders: Sequence[Order], spool: Spool, timeout_seconds: float
    ) -> tuple[_Sent, list[int], list[float]]:
        """Send every order that has a node; the letters, and every message's size and time.

        Clients that share processors end sooner together if those with most to do begin.
        """
        sent, sizes, pushed = _Sent(), [0] * len(orders), [0.0] * len(orders)
        for index in longest_first(orders):
            order = orders[index]
            handed = self._courier.hand_over(order, timeout_seconds)
            sizes[index], pushed[index] = handed.num_bytes, handed.at
            if handed.letter is None:
                spool.put(index, WAS_GONE, 0.0)
            else:
                name, node = handed.letter
                sent[name] = (order.assignment.client_id, node)
        return sent, sizes, pushed

    def _answers(
        self, sent: _Sent, deadline: float, on_wait: OnWait
    ) -> Iterator[tuple[str, bytes | Refusal]]:
        """Answers as they arrive, all that had come in by the deadline; who is gone is given up."""
        pending, lookout = dict(sent), Lookout(self._nodes, self.look_seconds)
        while pending:
            in_time = time.monotonic() < deadline
            for letter, answer in self._post.fetch(pending):
                del pending[letter]
                yield letter, answer
            lookout.glance()
            lost = [x for x, (c, node) in pending.items() if self._courier.has_left(c, node)]
            self._post.close(lost)
            for letter in lost:
                del pending[letter]
                yield letter, HAS_LEFT
            on_wait(len(sent) - len(pending))
            if not in_time:
                return
            if pending:
                self._post.rest(POLL_SECONDS)


def longest_first(orders: Sequence[Order]) -> list[int]:
    """Places of ``orders``, those that are expected to take longest first.

    What differs by a tenth counts as equal and keeps its order, in which replies are read.
    """
    steps = [
        round(_STEPS_PER_OCTAVE * math.log2(x)) if (x := order.expected_seconds) > 0 else 0
        for order in orders
    ]
    return sorted(range(len(orders)), key=lambda index: -steps[index])
