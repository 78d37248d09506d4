"""A Flower Grid without Flower: nodes that answer, keep silent, fail, or answer late or twice."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace

from orchestrator.federation import Federation
from orchestrator.plans import Order
from strategies.types import ClientId
from strategies.wire import (
    decode_assignment,
    encode_profile,
    encode_result,
    from_record,
    kind_of,
    to_record,
)
from tests.orchestrator.builders import an_update


@dataclass
class FakeGrid:
    """``nodes`` says which client lives where; ``manners`` how a client answers orders.

    Manners: ``answer``, ``twice``, ``hold`` (until ``release``), or an error code of Flower's.
    ``order`` of delivery is that of sending, backwards if ``backwards``.
    """

    federation: Federation
    nodes: dict[int, ClientId]
    manners: dict[ClientId, str | int] = field(default_factory=dict)
    profiles: dict[ClientId, bytes] = field(default_factory=dict)
    backwards: bool = False
    held: list[SimpleNamespace] = field(default_factory=list)
    outbox: list[SimpleNamespace] = field(default_factory=list)
    received: list[str] = field(default_factory=list)
    since: dict[int, str] = field(default_factory=dict)  # when a node was connected, if it matters
    lost: BaseException | None = None
    _count: int = 0

    def get_nodes(self):
        if self.lost:
            raise self.lost
        return [
            SimpleNamespace(node_id=node, last_activated_at=self.since.get(node, ""))
            for node in self.nodes
        ]

    def push_messages(self, messages):
        return [name for message in messages if (name := self._push(message))]

    def pull_messages(self, message_ids):
        wanted = set(message_ids)
        found = [x for x in self.outbox if x.metadata.reply_to_message_id in wanted]
        self.outbox = [x for x in self.outbox if x not in found]
        return found[::-1] if self.backwards else found

    def release(self):
        """Deliver what was held."""
        self.outbox += self.held
        self.held = []

    def _push(self, message):
        client = self.nodes.get(message.metadata.dst_node_id)
        if client is None:
            return None
        self._count += 1
        name, content = f"letter-{self._count}", from_record(message.content)
        if kind_of(content) == "recipe":
            own = {p.client_id: p for p in self.federation.clients}
            default = encode_profile(own[client], {}) if client in own else b""
            self.outbox.append(_reply(name, self.profiles.get(client, default)))
            return name
        assignment, tensors = decode_assignment(content)
        self.received.append(assignment.assignment_id)
        order = Order(assignment=assignment, tensors=tensors, max_reply_bytes=10**9)
        manner = self.manners.get(client, "answer")
        if isinstance(manner, int):
            self.outbox.append(_error(name, manner))
            return name
        reply = _reply(name, encode_result(an_update(order, self.federation)))
        if manner == "hold":
            self.held.append(reply)
        else:
            self.outbox += [reply] * (2 if manner == "twice" else 1)
        return name


def _reply(name: str, content: bytes) -> SimpleNamespace:
    return SimpleNamespace(
        metadata=SimpleNamespace(reply_to_message_id=name),
        has_error=lambda: False,
        content=to_record(content),
    )


def _error(name: str, code: int) -> SimpleNamespace:
    return SimpleNamespace(
        metadata=SimpleNamespace(reply_to_message_id=name),
        has_error=lambda: True,
        error=SimpleNamespace(code=code, reason=f"error {code}"),
    )
