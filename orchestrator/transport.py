"""The way to the clients and back."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from orchestrator.federation import Federation, agree
from orchestrator.plans import Order
from strategies.errors import PerennialError, TransportError, WireError
from strategies.limits import readable
from strategies.types import (
    ClientFailure,
    ClientId,
    ClientProfile,
    FailureReason,
    GroupName,
    Reply,
    Tensors,
    Update,
)
from strategies.wire import (
    decode_profile,
    decode_result,
    encode_assignment,
    encode_recipe,
)

OnWait = Callable[[int], None]
"""Called often while waiting, with the number of replies so far; may raise to stop waiting."""

Endpoint = Callable[[bytes], bytes]
"""A client as a function of messages."""


class Transport(Protocol):
    """Carries orders to clients and their replies back; knows nothing of learning."""

    def federation(self, recipe: str, *, timeout_seconds: float, on_wait: OnWait) -> Federation:
        """Ask every client who it is.

        Raises: TransportError if clients are missing at the deadline or disagree.
        """
        ...

    def base_values(
        self, recipe: str, groups: Sequence[GroupName], *, timeout_seconds: float
    ) -> Tensors:
        """The base model's own values of ``groups``, from any one client.

        Raises: TransportError if none answers in time.
        """
        ...

    def exchange(
        self, orders: Sequence[Order], *, timeout_seconds: float, on_wait: OnWait
    ) -> Iterator[Reply]:
        """Exactly one reply per order, in the order of ``orders`` whenever they arrive.

        What is missing at the deadline is a ``ClientFailure``.  Memory holds one reply at a time.
        """
        ...


@dataclass(frozen=True, slots=True)
class InProcessTransport:
    """Clients as functions in this process, asked one after another, over the real wire format.

    The deadline is looked at between clients, not during one.
    """

    endpoints: dict[ClientId, Endpoint]
    on_progress: Callable[[], None] = lambda: None

    def federation(self, recipe: str, *, timeout_seconds: float, on_wait: OnWait) -> Federation:
        request, profiles = encode_recipe(recipe, ()), list[ClientProfile]()
        for count, (client, endpoint) in enumerate(self.endpoints.items()):
            on_wait(count)
            profile = decode_profile(endpoint(request))[0]
            if profile.client_id != client:
                raise TransportError(f"{client} introduced itself as {profile.client_id}")
            profiles.append(profile)
        return agree(profiles)

    def base_values(
        self, recipe: str, groups: Sequence[GroupName], *, timeout_seconds: float
    ) -> Tensors:
        endpoint = next(iter(self.endpoints.values()))
        return decode_profile(endpoint(encode_recipe(recipe, groups)))[1]

    def exchange(
        self, orders: Sequence[Order], *, timeout_seconds: float, on_wait: OnWait
    ) -> Iterator[Reply]:
        deadline = time.monotonic() + timeout_seconds
        for count, order in enumerate(orders):
            on_wait(count)
            self.on_progress()
            message = encode_assignment(order.assignment, order.tensors)
            if time.monotonic() > deadline:
                yield late(order, len(message), timeout_seconds)
                continue
            start = time.monotonic()
            answer = self._ask(order, message)
            yield to_reply(order, len(message), answer, time.monotonic() - start)

    def _ask(self, order: Order, message: bytes) -> bytes | ClientFailure:
        try:
            return self.endpoints[order.assignment.client_id](message)
        except PerennialError as error:
            return failure(order, FailureReason.CRASHED, f"{type(error).__name__}: {error}")


def failure(order: Order, reason: FailureReason, detail: str) -> ClientFailure:
    """A failure of the client ``order`` was for; of ``detail`` what fits one safe line."""
    return ClientFailure(
        assignment_id=order.assignment.assignment_id,
        client_id=order.assignment.client_id,
        reason=reason,
        detail=readable(detail),
    )


def late(order: Order, bytes_down: int, timeout_seconds: float) -> Reply:
    """No answer in time."""
    detail = f"no reply within {timeout_seconds:g} s"
    result = failure(order, FailureReason.DEADLINE, detail)
    return Reply(result=result, bytes_down=bytes_down, bytes_up=0, seconds=timeout_seconds)


def to_reply(order: Order, bytes_down: int, answer: bytes | ClientFailure, seconds: float) -> Reply:
    """Decode a client's answer; bytes that are no answer of ours are that client's failure."""
    bytes_up = 0 if isinstance(answer, ClientFailure) else len(answer)
    return Reply(
        result=answer if isinstance(answer, ClientFailure) else _decode(order, answer),
        bytes_down=bytes_down,
        bytes_up=bytes_up,
        seconds=seconds,
    )


def _decode(order: Order, answer: bytes) -> Update | ClientFailure:
    if len(answer) > order.max_reply_bytes:
        detail = f"reply of {len(answer)} bytes, the plan allows {order.max_reply_bytes}"
        return failure(order, FailureReason.MALFORMED, detail)
    try:
        return decode_result(answer)
    except WireError as error:
        return failure(order, FailureReason.MALFORMED, str(error))
