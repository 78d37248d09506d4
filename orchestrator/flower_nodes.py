"""Which client lives on which SuperNode, as nodes come and go."""

from __future__ import annotations

from dataclasses import dataclass, field

from flwr.app import MessageType

from orchestrator.attendance import Changes
from orchestrator.flower_post import Node, Post
from orchestrator.spool import Refusal
from strategies.errors import PerennialError
from strategies.types import ClientId, ClientProfile
from strategies.wire import decode_profile


@dataclass(slots=True)
class Nodes:
    """Asks every new node who it is and forgets those that are gone.

    A client that returns is on another node, often before Flower has noticed that the old one is
    gone: the node that introduced itself last is the client's.
    """

    post: Post
    request: bytes = b""
    patience_seconds: float = 600.0  # in which a new node must say who it is
    homes: dict[ClientId, Node] = field(default_factory=dict)
    connected: frozenset[Node] = frozenset()
    _asked: dict[str, Node] = field(default_factory=dict)  # by letter
    _known: set[Node] = field(default_factory=set)  # nodes that were asked, since they connected
    _left: list[ClientId] = field(default_factory=list)
    _joined: dict[ClientId, ClientProfile] = field(default_factory=dict)
    _faults: list[str] = field(default_factory=list)

    @property
    def expecting(self) -> bool:
        """Whether a node has been asked and has not answered yet."""
        return bool(self._asked)

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
        for node in sorted(self.connected - self._known):
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
            self._faults.append(answer.detail)
            return
        try:
            profile, _ = decode_profile(answer)
        except PerennialError as error:
            self._faults.append(str(error))
            return
        self.homes[profile.client_id] = node
        self._joined[profile.client_id] = profile
