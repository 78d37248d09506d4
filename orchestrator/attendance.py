"""Clients that come and go: who is there between two steps, and what came in too late."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, Protocol, runtime_checkable

from orchestrator.federation import Federation, disagreement
from orchestrator.transport import OnWait
from strategies.types import ClientId, ClientProfile


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """Who left and who introduced themselves since a transport was last asked, in that order.

    ``faults`` say why others could not introduce themselves.
    """

    left: tuple[ClientId, ...] = ()
    joined: tuple[ClientProfile, ...] = ()
    faults: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LateReply:
    """A reply that was not waited for any more, or came a second time; it is used for nothing.

    ``seconds_late`` counts from the moment the exchange of its step was closed; 0 for a second copy
    of an answer that was in time.
    """

    kind: Literal["late", "duplicate"]
    assignment_id: str
    client_id: ClientId
    step_index: int
    seconds_late: float
    bytes_up: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """What is put on record of clients that came, went or answered late, as an event has it."""

    kind: Literal["client-joined", "client-left", "client-refused", "client-late", "client-twice"]
    message: str
    data: Mapping[str, Any] = field(default_factory=dict)


@runtime_checkable
class Attended(Protocol):
    """A transport whose clients may leave and join while a run is under way."""

    def changes(self, *, at_least: int, timeout_seconds: float, on_wait: OnWait) -> Changes:
        """What has changed since the last call, or since ``federation``; one look, no waiting.

        With fewer than ``at_least`` clients there, it waits for more, as long as the timeout.
        """
        ...


@runtime_checkable
class Lingering(Protocol):
    """A transport that still hears of orders whose exchange is closed."""

    def late_replies(self) -> Sequence[LateReply]:
        """What has come in since the last call."""
        ...


def revised(federation: Federation, changes: Changes) -> tuple[Federation, tuple[Notice, ...]]:
    """The federation after ``changes``, and what to put on record of them.

    A newcomer that disagrees with the others on base model or tasks stays outside.
    """
    there = {client.client_id: client for client in federation.clients}
    away = {client.client_id: client for client in federation.absent}
    notices = [Notice(kind="client-refused", message=fault) for fault in changes.faults]
    for left in changes.left:
        if left in there:
            away[left] = there.pop(left)
            notices.append(_notice("client-left", left, "left"))
    for profile in changes.joined:
        client = profile.client_id
        if fault := disagreement(profile, [*there.values(), *away.values()][0]):
            notices.append(_notice("client-refused", client, f"refused: {fault}"))
            continue
        known = client in there or client in away
        notices.append(_notice("client-joined", client, "came back" if known else "joined"))
        there[client] = profile
        away.pop(client, None)
    after = replace(federation, clients=_sorted(there), absent=_sorted(away))
    return after, tuple(notices)


def noted(late: LateReply) -> Notice:
    """A late reply as it is put on record."""
    what = f"step {late.step_index}: {late.bytes_up} bytes"
    if late.kind == "duplicate":
        return Notice(
            kind="client-twice",
            message=f"{late.client_id} answered {what} a second time, not used",
            data=asdict(late),
        )
    return Notice(
        kind="client-late",
        message=f"{late.client_id} answered {what} {late.seconds_late:.1f} s too late, not used",
        data=asdict(late),
    )


def _notice(
    kind: Literal["client-joined", "client-left", "client-refused"], client: ClientId, what: str
) -> Notice:
    return Notice(kind=kind, message=f"{client} {what}", data={"client_id": client})


def _sorted(profiles: Mapping[ClientId, ClientProfile]) -> tuple[ClientProfile, ...]:
    return tuple(profiles[client] for client in sorted(profiles))
