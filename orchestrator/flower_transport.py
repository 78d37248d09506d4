"""Transport over a Flower Grid: our own push and pull, our own deadlines."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from flwr.app import Message, MessageType
from flwr.serverapp import Grid

from orchestrator.federation import Federation, agree
from orchestrator.plans import Order
from orchestrator.transport import OnWait, failure, late, to_reply
from strategies.errors import PerennialError, TransportError, WireError
from strategies.types import (
    ClientId,
    ClientProfile,
    FailureReason,
    GroupName,
    Reply,
    Tensors,
)
from strategies.wire import (
    decode_profile,
    encode_assignment,
    encode_recipe,
    from_record,
    to_record,
)

POLL_SECONDS: Final = 0.05


@dataclass(slots=True)
class FlowerTransport:
    """Talks to ``num_clients`` SuperNodes, real or simulated.

    Node ids are random and nodes appear in any order; which client lives on which node is learnt
    from the profiles, and replies are handed on in the order of the orders.
    """

    grid: Grid
    num_clients: int
    _nodes: dict[ClientId, int] = field(default_factory=dict)

    def federation(self, recipe: str, *, timeout_seconds: float, on_wait: OnWait) -> Federation:
        deadline = time.monotonic() + timeout_seconds
        nodes = self._wait_for_nodes(deadline, on_wait)
        request, profiles = encode_recipe(recipe, ()), list[ClientProfile]()
        pending = {self._push(node, request, MessageType.QUERY, deadline): node for node in nodes}
        faults = list[str]()
        for message_id, reply in self._replies(set(pending), deadline, on_wait):
            try:
                profile = _profile(reply)
            except PerennialError as error:
                faults.append(str(error))
                continue
            profiles.append(profile)
            self._nodes[profile.client_id] = pending[message_id]
        if len(profiles) < self.num_clients:
            raise TransportError(
                f"{len(profiles)} of {self.num_clients} clients could take part "
                f"({timeout_seconds:g} s were allowed)"
                + "".join(f"\n  - {fault}" for fault in dict.fromkeys(faults))
            )
        return agree(profiles)

    def base_values(
        self, recipe: str, groups: Sequence[GroupName], *, timeout_seconds: float
    ) -> Tensors:
        deadline = time.monotonic() + timeout_seconds
        node = self._nodes[min(self._nodes)]
        message_id = self._push(node, encode_recipe(recipe, groups), MessageType.QUERY, deadline)
        for _, reply in self._replies({message_id}, deadline, lambda _: None):
            if isinstance(reply, str):
                raise TransportError(f"{min(self._nodes)} cannot give base values: {reply}")
            return decode_profile(reply)[1]
        raise TransportError(f"{min(self._nodes)} gave no base values within {timeout_seconds:g} s")

    def exchange(
        self, orders: Sequence[Order], *, timeout_seconds: float, on_wait: OnWait
    ) -> Iterator[Reply]:
        deadline = time.monotonic() + timeout_seconds
        index_of, sizes, pushed = dict[str, int](), list[int](), list[float]()
        for index, order in enumerate(orders):
            message = encode_assignment(order.assignment, order.tensors)
            sizes.append(len(message))
            node = self._nodes[order.assignment.client_id]
            pushed.append(time.monotonic())
            index_of[self._push(node, message, MessageType.TRAIN, deadline)] = index
        with TemporaryDirectory(prefix="perennial-replies-") as folder:
            spool, following = _Spool(Path(folder)), 0
            for message_id, answer in self._replies(set(index_of), deadline, on_wait):
                index = index_of[message_id]
                spool.put(index, answer, time.monotonic() - pushed[index])
                while (ready := spool.take(following)) is not None:
                    yield _reply(orders[following], sizes[following], *ready)
                    following += 1
            for index in range(following, len(orders)):
                ready = spool.take(index)
                yield (
                    late(orders[index], sizes[index], timeout_seconds)
                    if ready is None
                    else _reply(orders[index], sizes[index], *ready)
                )

    def _wait_for_nodes(self, deadline: float, on_wait: OnWait) -> list[int]:
        while len(nodes := list(self.grid.get_node_ids())) < self.num_clients:
            if time.monotonic() > deadline:
                raise TransportError(
                    f"{len(nodes)} of {self.num_clients} SuperNodes are connected; start the "
                    "others or lower federation.clients"
                )
            on_wait(0)
            time.sleep(POLL_SECONDS)
        return nodes

    def _push(self, node: int, message: bytes, kind: str, deadline: float) -> str:
        """Send to one node; the id its reply will refer to."""
        lifetime = max(deadline - time.monotonic(), 1.0)
        outgoing = Message(to_record(message), node, kind, ttl=lifetime)
        pushed = list(self.grid.push_messages([outgoing]))
        if not pushed:
            raise TransportError(f"Flower took no message for node {node}; is it still registered?")
        return str(pushed[0])

    def _replies(
        self, pending: set[str], deadline: float, on_wait: OnWait
    ) -> Iterator[tuple[str, bytes | str]]:
        """Replies as they arrive, as bytes or as the text of an error; stops at the deadline."""
        arrived = 0
        while pending and time.monotonic() < deadline:
            for message in self.grid.pull_messages(pending):
                pending.discard(message.metadata.reply_to_message_id)
                arrived += 1
                yield message.metadata.reply_to_message_id, _content(message)
            on_wait(arrived)
            if pending:
                time.sleep(POLL_SECONDS)


def _content(message: Message) -> bytes | str:
    if message.has_error():
        return message.error.reason or f"Flower error code {message.error.code}"
    try:
        return from_record(message.content)
    except WireError as error:
        return str(error)


def _profile(reply: bytes | str) -> ClientProfile:
    if isinstance(reply, str):
        raise TransportError(reply)
    return decode_profile(reply)[0]


def _reply(order: Order, bytes_down: int, answer: bytes | str, seconds: float) -> Reply:
    if isinstance(answer, str):
        crash = failure(order, FailureReason.CRASHED, answer)
        return to_reply(order, bytes_down, crash, seconds)
    return to_reply(order, bytes_down, answer, seconds)


@dataclass(frozen=True, slots=True)
class _Spool:
    """Replies that came before their turn, on disk."""

    folder: Path
    waiting: dict[int, tuple[bool, float]] = field(default_factory=dict)  # is it an error, seconds

    def put(self, index: int, answer: bytes | str, seconds: float) -> None:
        content = answer.encode() if isinstance(answer, str) else answer
        (self.folder / str(index)).write_bytes(content)
        self.waiting[index] = (isinstance(answer, str), seconds)

    def take(self, index: int) -> tuple[bytes | str, float] | None:
        if index not in self.waiting:
            return None
        is_error, seconds = self.waiting.pop(index)
        path = self.folder / str(index)
        content = path.read_bytes()
        path.unlink()
        return (content.decode() if is_error else content), seconds
