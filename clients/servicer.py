"""The trainer's calls: chunks in, progress and chunks out, everything else on the bench."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import grpc

from clients import profile as device
from clients.bench import Bench
from clients.framing import Call, FramingError, call_for, cut, joined
from clients.jobs import BusyError, Job, StoppingError
from clients.proto.trainer_pb2 import (
    Event,
    Opening,
    Progress,
    Request,
    ResetRequest,
    StatusReply,
    StatusRequest,
)
from strategies.errors import WireError
from strategies.limits import is_identifier
from strategies.types import ClientId

Context = Any
"""gRPC's context of a call; grpc is untyped."""


@dataclass(frozen=True, slots=True)
class Servicer:
    """Answers gRPC calls from a bench; messages above ``max_message_bytes`` are refused."""

    bench: Bench
    max_message_bytes: int

    def Describe(self, requests: Iterator[Request], context: Context) -> Iterator[Event]:  # noqa: N802 - by the interface
        return self._answer("Describe", requests, context)

    def Probe(self, requests: Iterator[Request], context: Context) -> Iterator[Event]:  # noqa: N802
        return self._answer("Probe", requests, context)

    def Train(self, requests: Iterator[Request], context: Context) -> Iterator[Event]:  # noqa: N802
        return self._answer("Train", requests, context)

    def Evaluate(self, requests: Iterator[Request], context: Context) -> Iterator[Event]:  # noqa: N802
        return self._answer("Evaluate", requests, context)

    def Reset(self, _: ResetRequest, context: Context) -> StatusReply:  # noqa: N802
        try:
            self.bench.forget()
        except BusyError as error:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
        return self._status()

    def Status(self, _: StatusRequest, __: Context) -> StatusReply:  # noqa: N802
        return self._status()

    def _status(self) -> StatusReply:
        found = self.bench.status()
        return StatusReply(
            model_loads=found.model_loads,
            runs_served=found.runs_served,
            answers=found.answers,
            busy=found.busy,
            device_memory_bytes=device.used_memory_bytes(),
            idle_seconds=found.idle_seconds,
        )

    def _answer(self, call: Call, requests: Iterator[Request], context: Context) -> Iterator[Event]:
        job = self._submitted(call, requests, context)
        if not context.add_callback(partial(self.bench.leave, job)):  # the caller is gone already
            self.bench.leave(job)
            return
        for at in self.bench.follow(job, context.is_active):
            yield Event(progress=Progress(phase=at.phase, step=at.step, steps=at.steps))
        if job.answer is None:
            gone = grpc.StatusCode.UNAVAILABLE if job.abandoned else grpc.StatusCode.INTERNAL
            context.abort(gone, job.error or "the caller left")
            return  # not reached: ``abort`` raises
        yield Event(opening=Opening(total_bytes=len(job.answer)))
        for chunk in cut(job.answer):
            yield Event(chunk=chunk)

    def _submitted(self, call: Call, requests: Iterator[Request], context: Context) -> Job:
        """The job of a request; ends the call where there can be none."""
        try:
            client_id, message = self._received(requests)
            if (fit := call_for(message)) != call:
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"a message for {fit}, not {call}")
            return self.bench.submit(_named(client_id), message)
        except (FramingError, WireError) as error:
            return context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))  # type: ignore[no-any-return]  # raises
        except BusyError as error:
            return context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))  # type: ignore[no-any-return]
        except StoppingError as error:
            return context.abort(grpc.StatusCode.UNAVAILABLE, str(error))  # type: ignore[no-any-return]

    def _received(self, requests: Iterator[Request]) -> tuple[ClientId, bytes]:
        opening = next(requests, Request()).opening
        chunks = (request.chunk for request in requests)
        message = joined(opening.total_bytes, chunks, limit_bytes=self.max_message_bytes)
        return ClientId(opening.client_id), message


def _named(client_id: ClientId) -> ClientId:
    """Raises: FramingError for an id that could be the name of anything but a client."""
    if not is_identifier(client_id):
        raise FramingError(f"client id {client_id!r:.80}, expected such as client-07")
    return client_id
