"""The way to a warm trainer, for a process that must start quickly: imports no torch.

A trainer that dies is waited for, since whoever started it starts it again, and asked once more;
after that the client's answer is a recorded failure.  Nothing is raised for Flower to stumble over.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

import grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from clients.addresses import check_address, is_unix
from clients.answering import Listener, Progress, unheard
from clients.framing import SERVICE, FramingError, call_for, cut, joined
from clients.proto.trainer_pb2 import (
    Opening,
    Request,
    ResetRequest,
    StatusReply,
    StatusRequest,
)
from clients.proto.trainer_pb2_grpc import TrainerStub
from clients.settings import MAX_MESSAGE_BYTES
from strategies.errors import TransportError, WireError
from strategies.types import ClientFailure, ClientId, FailureReason
from strategies.wire import encode_result, text_of

log = logging.getLogger(__name__)

_ATTEMPTS: Final = 2
_CALL_SECONDS: Final = 10.0  # for calls that need no model
_LOST: Final = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
_REASONS: Final = {
    grpc.StatusCode.FAILED_PRECONDITION: FailureReason.BUSY,
    grpc.StatusCode.DEADLINE_EXCEEDED: FailureReason.DEADLINE,
    grpc.StatusCode.INVALID_ARGUMENT: FailureReason.MALFORMED,
}
_OPTIONS: Final = (
    ("grpc.enable_http_proxy", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.keepalive_time_ms", 30_000),  # a machine that hangs counts as gone
    ("grpc.keepalive_timeout_ms", 20_000),
    # Channels to one address share a connection otherwise, and its backoff with it.
    ("grpc.use_local_subchannel_pool", 1),
)


class _LostError(Exception):
    """The trainer was not there, or went away before it had answered."""


@dataclass(frozen=True, slots=True)
class TrainerClient:
    """Answers like a trainer, by asking the one at ``address``.

    A trainer that is gone has ``recovery_seconds`` to come back; an answer takes ``answer_seconds``
    at most.  ``listener`` hears how far the trainer is.
    Raises: ConfigError for an address beyond this machine, or a port without a token.
    """

    address: str
    token: str | None = field(default=None, repr=False)
    recovery_seconds: float = 120.0
    answer_seconds: float = 86_400.0
    max_message_bytes: int = MAX_MESSAGE_BYTES
    listener: Listener = unheard

    def __post_init__(self) -> None:
        check_address(self.address, self.token)

    def answer(self, client_id: ClientId, message: bytes) -> bytes:
        """The trainer's reply, or a failure that says what became of it."""
        try:
            return self._answered(client_id, message)
        except WireError as error:
            return _failure(client_id, "", FailureReason.MALFORMED, str(error))
        except FramingError as error:
            return _failure(client_id, _id_of(message), FailureReason.MALFORMED, str(error))
        except grpc.RpcError as error:
            reason = _REASONS.get(error.code(), FailureReason.CRASHED)
            text = f"the trainer at {self.address} answered {error.code().name}: {error.details()}"
            return _failure(client_id, _id_of(message), reason, text)

    def healthy(self, timeout_seconds: float = _CALL_SECONDS) -> bool:
        """Whether the trainer takes messages."""
        with self._channel() as channel:
            return self._is_serving(channel, timeout_seconds)

    def status(self) -> StatusReply:
        """What the trainer has done and holds.

        Raises: TransportError if it does not say.
        """
        return self._told("Status", StatusRequest())

    def reset(self) -> StatusReply:
        """Have the trainer drop its model, data and last answer; what is on disk stays.

        Raises: TransportError if it is busy or does not answer.
        """
        return self._told("Reset", ResetRequest())

    def _told(self, call: str, request: StatusRequest | ResetRequest) -> StatusReply:
        with self._channel() as channel:
            try:
                reply: StatusReply = getattr(TrainerStub(channel), call)(
                    request, timeout=_CALL_SECONDS, metadata=self._metadata()
                )
            except grpc.RpcError as error:
                raise TransportError(
                    f"trainer at {self.address}: {error.code().name}: {error.details()}"
                ) from None
            return reply

    def _answered(self, client_id: ClientId, message: bytes) -> bytes:
        call, lost = call_for(message), list[str]()
        while len(lost) < _ATTEMPTS:
            with self._channel() as channel:
                if not self._ready(channel):
                    text = f"no trainer at {self.address} within {self.recovery_seconds:g} s"
                    break
                try:
                    return self._asked(channel, call, client_id, message)
                except _LostError as error:
                    log.warning("lost the trainer at %s: %s", self.address, error)
                    lost.append(str(error))
        else:
            text = f"the trainer at {self.address} went away {_ATTEMPTS} times while answering"
        text = "; ".join([text, *lost])
        return _failure(client_id, _id_of(message), FailureReason.CRASHED, text)

    def _asked(
        self, channel: grpc.Channel, call: str, client_id: ClientId, message: bytes
    ) -> bytes:
        events = getattr(TrainerStub(channel), call)(
            _requests(client_id, message), timeout=self.answer_seconds, metadata=self._metadata()
        )
        try:
            for event in events:
                if event.HasField("opening"):
                    chunks = (event.chunk for event in events)
                    total = event.opening.total_bytes
                    return joined(total, chunks, limit_bytes=self.max_message_bytes)
                at = event.progress
                self.listener(Progress(phase=at.phase, step=at.step, steps=at.steps))
        except grpc.RpcError as error:
            if error.code() in _LOST:
                raise _LostError(f"{error.code().name}: {error.details()}") from None
            raise
        finally:
            events.cancel()
        raise _LostError("it ended the call without an answer")

    def _ready(self, channel: grpc.Channel) -> bool:
        """Wait until the trainer takes messages, for ``recovery_seconds`` at most."""
        deadline = time.monotonic() + self.recovery_seconds
        while (left := deadline - time.monotonic()) > 0:
            if self._is_serving(channel, left):
                return True
            time.sleep(min(0.1, left))
        return False

    def _is_serving(self, channel: grpc.Channel, timeout_seconds: float) -> bool:
        try:
            found = HealthStub(channel).Check(
                HealthCheckRequest(service=SERVICE), timeout=timeout_seconds, wait_for_ready=True
            )
        except grpc.RpcError:
            return False
        return bool(found.status == HealthCheckResponse.SERVING)

    def _channel(self) -> grpc.Channel:
        authority = (("grpc.default_authority", "localhost"),) if is_unix(self.address) else ()
        return grpc.insecure_channel(self.address, options=(*_OPTIONS, *authority))

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {self.token}"),) if self.token else ()


def _requests(client_id: ClientId, message: bytes) -> Iterator[Request]:
    yield Request(opening=Opening(client_id=client_id, total_bytes=len(message)))
    for chunk in cut(message):
        yield Request(chunk=chunk)


def _id_of(message: bytes) -> str:
    return text_of(message, "assignment_id")


def _failure(client_id: ClientId, assignment_id: str, reason: FailureReason, detail: str) -> bytes:
    return encode_result(
        ClientFailure(
            assignment_id=assignment_id, client_id=client_id, reason=reason, detail=detail
        )
    )
