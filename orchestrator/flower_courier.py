"""Takes orders to the nodes their clients live on, and notices who has gone."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Final

from flwr.app import MessageType

from orchestrator.flower_nodes import Nodes
from orchestrator.flower_post import Node, Post
from orchestrator.plans import Order
from orchestrator.spool import Refusal
from strategies.types import ClientId, FailureReason
from strategies.wire import encode_assignment

# An order lives for so many times the wait for its reply: so long are late ones heard of.
LIFETIME: Final = 2.0
WAS_GONE: Final = Refusal(
    reason=FailureReason.UNREACHABLE, detail="was gone before it could be asked"
)
HAS_LEFT: Final = Refusal(
    reason=FailureReason.UNREACHABLE,
    detail="left, or came back on another node, before it had answered",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Handed:
    """An order handed over at a monotonic second: letter and node, or None if nobody was there."""

    letter: tuple[str, Node] | None
    num_bytes: int
    at: float


@dataclass(frozen=True, slots=True)
class Courier:
    """Knows the way to every client."""

    post: Post
    nodes: Nodes

    def hand_over(self, order: Order, timeout_seconds: float) -> Handed:
        """Send an order whose reply is waited for so long."""
        node, letter = self.nodes.homes.get(order.assignment.client_id), None
        message = encode_assignment(order.assignment, order.tensors)
        at, lifetime = time.monotonic(), LIFETIME * timeout_seconds
        if node is not None:
            name = self.post.send(node, message, MessageType.TRAIN, lifetime, order.assignment)
            letter = (name, node) if name is not None else None
        return Handed(letter=letter, num_bytes=len(message), at=at)

    def has_left(self, client: ClientId, node: Node) -> bool:
        """Whether ``client`` does not live on ``node`` any more."""
        return self.nodes.homes.get(client) != node


@dataclass(slots=True)
class Lookout:
    """Looks who is there whenever ``every_seconds`` have passed since it last did, or began."""

    nodes: Nodes
    every_seconds: float
    _looked: float = field(default_factory=time.monotonic)

    def glance(self) -> None:
        """Look, if it is time."""
        if time.monotonic() - self._looked > self.every_seconds:
            self.nodes.look()
            self._looked = time.monotonic()
