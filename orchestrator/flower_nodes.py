"""Which client lives on which SuperNode, as nodes come and go."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from flwr.app import MessageType

from orchestrator.attendance import Changes
from orchestrator.flower_post import Node, Post
from orchestrator.spool import Refusal
from strategies.errors import PerennialError, WireError
from strategies.types import ClientFailure, ClientId, ClientProfile, FailureReason
from strategies.wire import decode_profile, decode_result, kind_of

_ATTEMPTS: Final = 3
AGAIN_SECONDS: Final = 10.0  # until a busy client is asked again, for which Flower starts a process


@dataclass(slots=True)
class Nodes:
    """Asks every new node who it is and forgets those that are gone.

    A client that returns is on another node, often before Flower has noticed that the old one is
    gone: the node that introduced itself last is the client's.  One that is at work still, for a
    run that was interrupted, say, is asked again; so is one whose ClientApp died, three times.
    """

    post: Post
    clients: frozenset[ClientId]  # who may introduce themselves
    request: bytes = b""
    patience_seconds: float = 600.0  # in which a new node must say who it is
    homes: dict[ClientId, Node] = field(default_factory=dict)
    connected: frozenset[Node] = frozenset()
    _asked: dict[str, Node] = field(default_factory=dict)  # by letter
    _known: set[Node] = field(default_factory=set)  # nodes that were asked, since they connected
    _busy: dict[Node, float] = field(default_factory=dict)  # asked again at a monotonic second
    _died: Counter[Node] = field(default_factory=Counter)  # ClientApps before one has answered
    _left: list[ClientId] = field(default_factory=list)
    _joined: dict[ClientId, ClientProfile] = field(default_factory=dict)
    _faults: list[str] = field(default_factory=list)

    @property
    def expecting(self) -> bool:
        """Whether a node has been asked, or will be again, and has not said who it is yet."""
        return bool(self._asked or self._busy)

    def look(self) -> None:
        """Look once at who is there, without waiting for anybody."""
        self.connected = self.post.nodes()
        self._known &= self.connected
        numbers = {node.number for node in self.connected - self._known}
        self._asked = {i: n for i, n in self._asked.items() if n.number not in numbers}
        for client, node in sorted(self.homes.items()):
            if node not in self.connected:
                del self.homes[client]
                self._joined.pop(client, None)
                self._left.append(client)
        now = time.monotonic()
        self._busy = {n: at for n, at in self._busy.items() if n in self.connected and at > now}
        for node in sorted(self.connected - self._known - self._busy.keys()):
            letter = self.post.send(node, self.request, MessageType.QUERY, self.patience_seconds)
            if letter is not None:
                self._known.add(node)
                self._asked[letter] = node
        for letter, answer in self.post.fetch(self._asked):
            self._introduced(self._asked.pop(letter), answer)

    def changes(self) -> Changes:
        """What has changed since the last call."""
        found = Changes(
            left=tuple(self._left),
            joined=tuple(self._joined.values()),
            faults=tuple(dict.fromkeys(self._faults)),
        )
        self._left, self._joined, self._faults = [], {}, []
        return found

    def _introduced(self, node: Node, answer: bytes | Refusal) -> None:
        if isinstance(answer, Refusal):
            self._died[node] += 1
            if self._died[node] < _ATTEMPTS:
                self._ask_again(node)
            else:
                self._faults.append(answer.detail)
            return
        if _is_busy(answer):
            self._ask_again(node)
            return
        try:
            profile, _ = decode_profile(answer)
        except PerennialError as error:
            self._faults.append(str(error))
            return
        if profile.client_id not in self.clients:
            self._faults.append(
                f"a node introduced itself as {profile.client_id}, expected one of "
                f"{min(self.clients)} … {max(self.clients)}; start it with the run's --clients"
            )
            return
        self.homes[profile.client_id] = node
        self._joined[profile.client_id] = profile
        del self._died[node]

    def _ask_again(self, node: Node) -> None:
        self._known.discard(node)
        self._busy[node] = time.monotonic() + AGAIN_SECONDS


def _is_busy(answer: bytes) -> bool:
    try:
        if kind_of(answer) != "failure":
            return False
        failure = decode_result(answer)
    except WireError:
        return False
    return isinstance(failure, ClientFailure) and failure.reason is FailureReason.BUSY
