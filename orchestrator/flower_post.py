"""Letters over a Flower Grid: what was sent, what came back, and what came back too late."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol, runtime_checkable

import httpx
from flwr.app import Message
from flwr.common.constant import ErrorCode
from flwr.supercore.run import RunNotRunningException

from orchestrator.attendance import LateReply
from orchestrator.spool import Refusal
from strategies.errors import RunInterrupted, WireError
from strategies.limits import readable
from strategies.types import Assignment, FailureReason
from strategies.wire import from_record, to_record

_UNASKED_SECONDS: Final = 0.25  # for which a grid that wakes us is not asked anything
_REASONS: Final = {
    # Before a letter's own time is up, Flower has lost it only if the node was removed.
    ErrorCode.MESSAGE_UNAVAILABLE: FailureReason.UNREACHABLE,
    ErrorCode.NODE_UNAVAILABLE: FailureReason.UNREACHABLE,
    ErrorCode.REPLY_MESSAGE_UNAVAILABLE: FailureReason.DEADLINE,
}


class Node(NamedTuple):
    """A SuperNode as it is connected since some time of the SuperLink's.

    One with a key that was killed comes back under its number, and what it was told is lost: it is
    another node.
    """

    number: int
    since: str


class Known(Protocol):
    """A node as a grid tells of it."""

    @property
    def node_id(self) -> int: ...

    @property
    def last_activated_at(self) -> str: ...


class Grid(Protocol):
    """What of a Flower grid is used."""

    def get_nodes(self) -> Iterable[Known]:
        """The nodes that are connected."""
        ...

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send; the messages' ids."""
        ...

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The answers that are there."""
        ...


@runtime_checkable
class Waking(Protocol):
    """A grid that need not be asked again and again."""

    def wait(self, seconds: float) -> None:
        """Until an answer comes in, at most so long."""
        ...


@dataclass(slots=True, kw_only=True)
class _Letter:
    """A message under way; ``closed_at`` is when its answer was no longer waited for."""

    assignment: Assignment | None  # None for a question
    until: float  # the monotonic second after which Flower forgets it
    closed_at: float | None = None
    answered: bool = False

    @property
    def is_open(self) -> bool:
        return not self.answered and self.closed_at is None


@dataclass(slots=True)
class Post:
    """Sends letters and fetches answers; every answer is handed on once, and only if in time."""

    grid: Grid
    _letters: dict[str, _Letter] = field(default_factory=dict)
    _late: list[LateReply] = field(default_factory=list)

    def nodes(self) -> frozenset[Node]:
        """The nodes that are connected."""
        with _superlink():
            return frozenset(Node(x.node_id, x.last_activated_at) for x in self.grid.get_nodes())

    def send(
        self,
        node: Node,
        message: bytes,
        kind: str,
        lifetime_seconds: float,
        assignment: Assignment | None = None,
    ) -> str | None:
        """Send to one node; the letter's id, None if Flower does not know the node any more."""
        lifetime = max(lifetime_seconds, 1.0)
        outgoing = Message(to_record(message), node.number, kind, ttl=lifetime)
        with _superlink():
            pushed = list(self.grid.push_messages([outgoing]))
        if not pushed or not pushed[0]:
            return None
        until = time.monotonic() + lifetime
        self._letters[str(pushed[0])] = _Letter(assignment=assignment, until=until)
        return str(pushed[0])

    def fetch(self, expected: Collection[str]) -> Iterator[tuple[str, bytes | Refusal]]:
        """What has come in for the letters ``expected``; asks once, for late answers as well."""
        closed = {i for i, x in self._letters.items() if x.closed_at is not None and not x.answered}
        asked = {*expected, *closed}
        with _superlink():
            messages = list(self.grid.pull_messages(asked)) if asked else []
        for message in messages:
            name = message.metadata.reply_to_message_id
            letter, content = self._letters.get(name), _content(message)
            if letter is None or (letter.is_open and name not in expected):
                continue
            if letter.is_open:
                letter.answered = True
                yield name, content
            else:
                self._note(letter, content)
                letter.answered = True

    def rest(self, seconds: float) -> None:
        """Let so much time pass; a grid that knows when something comes in may be left alone."""
        if isinstance(self.grid, Waking):
            self.grid.wait(max(seconds, _UNASKED_SECONDS))
        else:
            time.sleep(seconds)

    def close(self, letters: Collection[str]) -> None:
        """Wait no longer for the answers to these."""
        now = time.monotonic()
        for letter in filter(None, map(self._letters.get, letters)):  # the others are long over
            if not letter.answered:
                letter.closed_at = now
        self._letters = {i: x for i, x in self._letters.items() if x.until > now or x.is_open}

    def late(self) -> tuple[LateReply, ...]:
        """Late and repeated answers since the last call."""
        list(self.fetch(()))
        found, self._late = tuple(self._late), []
        return found

    def _note(self, letter: _Letter, content: bytes | Refusal) -> None:
        """An error for a letter that nobody waits for is on record as the failure it was."""
        assignment = letter.assignment
        if assignment is None or isinstance(content, Refusal):
            return
        closed = time.monotonic() if letter.closed_at is None else letter.closed_at
        self._late.append(
            LateReply(
                kind="duplicate" if letter.answered else "late",
                assignment_id=assignment.assignment_id,
                client_id=assignment.client_id,
                step_index=assignment.step_index,
                seconds_late=time.monotonic() - closed,
                bytes_up=len(content),
            )
        )


@contextmanager
def _superlink() -> Iterator[None]:
    """A SuperLink that is lost, or has stopped the run, interrupts it: it can be resumed.

    Flower tries again by itself where only a connection is lost.
    """
    try:
        yield
    except RunNotRunningException:
        raise RunInterrupted("its SuperLink has stopped it") from None
    except httpx.HTTPError as error:
        raise RunInterrupted(f"its SuperLink is lost: {error or type(error).__name__}") from None


def _content(message: Message) -> bytes | Refusal:
    if message.has_error():
        error = message.error
        return Refusal(
            reason=_REASONS.get(error.code, FailureReason.CRASHED),
            detail=readable(error.reason or "") or f"Flower error code {error.code}",
        )
    try:
        return from_record(message.content)
    except WireError as error:
        return Refusal(reason=FailureReason.MALFORMED, detail=str(error))
