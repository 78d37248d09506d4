"""Server-sent events of a run: its progress and what is committed, whichever process runs it.

Every message's id is ``STEP.EVENT``, the last step and event that were told by then; a browser
that reconnects sends it back and misses nothing.  Messages: ``progress``, ``round``, ``log``,
``rewound`` (steps were forgotten: read the run again) and ``end``, after which nothing follows.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Annotated, Any, Final

import anyio
from fastapi import APIRouter, Header, HTTPException, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse

from orchestrator.store.base import ENDED
from orchestrator.store.browsing import EventWindow, Pulse, Window
from orchestrator.store.sql import SqlRunStore
from orchestrator.summary import run_listing, shown_events, strict, summed_rounds
from orchestrator.web.access import Reading, settings_of
from orchestrator.web.settings import WebSettings
from strategies.errors import RunNotFoundError, StoreUnreachableError

MOST_STREAMS: Final = 200
_AT_ONCE: Final = 100  # steps or events of one look
router = APIRouter(prefix="/api/v1")


@dataclass(frozen=True, slots=True)
class Cursor:
    """What was told: all steps up to ``step``, all events up to number ``event``."""

    step: int = -1
    event: int = 0

    @classmethod
    def read(cls, text: str | None) -> Cursor:
        """The cursor of a message's id; the beginning for anything else."""
        step, _, event = (text or "").partition(".")
        try:
            return cls(step=max(-1, int(step)), event=max(0, int(event)))
        except ValueError:
            return cls()

    def __str__(self) -> str:
        """A message's id."""
        return f"{self.step}.{self.event}"


@dataclass(slots=True)
class Watch:
    """One stream's look at a run."""

    run_id: str
    store: SqlRunStore
    cursor: Cursor
    shown: tuple[Any, ...] = ()
    ended: bool = False

    def look(self) -> list[str]:
        """Messages about what is new."""
        try:
            pulse = self.store.pulse(self.run_id)
        except RunNotFoundError:
            self.ended = True
            return [message("end", {"status": "deleted", "reason": "the run was deleted"}, None)]
        found = [*self._rewound(pulse), *self._steps(pulse), *self._events(pulse)]
        found += self._progress(pulse)
        told = pulse.last_step <= self.cursor.step and pulse.last_event <= self.cursor.event
        if pulse.status in ENDED and told:
            self.ended = True
            end = {"status": pulse.status.value, "reason": pulse.reason}
            found.append(message("end", end, self.cursor))
        return found

    def _rewound(self, pulse: Pulse) -> list[str]:
        if pulse.last_step >= self.cursor.step:
            return []
        self.cursor = Cursor(pulse.last_step, self.cursor.event)
        return [message("rewound", {"last_step": pulse.last_step}, self.cursor)]

    def _steps(self, pulse: Pulse) -> list[str]:
        if pulse.last_step <= self.cursor.step:
            return []
        window = Window(first=self.cursor.step + 1, limit=_AT_ONCE)
        messages = list[str]()
        for shown in summed_rounds(self.store.steps(self.run_id, window)):
            self.cursor = Cursor(shown["step"], self.cursor.event)
            messages.append(message("round", shown, self.cursor))
        return messages

    def _events(self, pulse: Pulse) -> list[str]:
        if pulse.last_event <= self.cursor.event:
            return []
        window = EventWindow(after=self.cursor.event, limit=_AT_ONCE)
        messages = list[str]()
        for each in self.store.event_window(self.run_id, window):
            self.cursor = Cursor(self.cursor.step, each.number)
            told = {**shown_events([each.event])[0], "number": each.number}
            messages.append(message("log", told, self.cursor))
        return messages

    def _progress(self, pulse: Pulse) -> list[str]:
        now = (pulse.status, pulse.reason, json.dumps(pulse.progress, sort_keys=True, default=str))
        if now == self.shown:
            return []
        self.shown = now
        (listed,) = run_listing([self.store.get_run(self.run_id)])["runs"]
        told = {"run": listed, "reason": pulse.reason, "progress": strict(pulse.progress)}
        return [message("progress", told, self.cursor)]


@dataclass(slots=True)
class Streams:
    """How many streams are open."""

    count: int = 0
    most: int = field(default=MOST_STREAMS)


@router.get(
    "/runs/{run_id}/stream",
    response_class=StreamingResponse,
    responses={200: {"content": {"text/event-stream": {}}}},
)
async def stream(
    request: Request,
    reader: Reading,
    run_id: str,
    after: Annotated[str | None, Query(max_length=40)] = None,
    last_event_id: Annotated[str | None, Header(max_length=40)] = None,
) -> StreamingResponse:
    """Progress and new steps and events, from ``after`` or Last-Event-ID on, until the run ends."""
    streams: Streams = request.app.state.streams
    if streams.count >= streams.most:
        raise HTTPException(503, f"{streams.most} streams are open already; try again later")
    whole = await run_in_threadpool(reader.run_id, run_id)
    watch = Watch(whole, reader.store, Cursor.read(last_event_id or after))
    settings = settings_of(request)
    return StreamingResponse(
        _counted(told(watch, settings), streams),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


async def told(watch: Watch, settings: WebSettings) -> AsyncIterator[str]:
    """The messages of a stream, with a comment now and then where nothing happens."""
    yield "retry: 2000\n\n"
    spoken = time.monotonic()
    while not settings.closing():
        try:
            messages = await run_in_threadpool(watch.look)
        except StoreUnreachableError:
            messages = []
        if messages:
            yield "".join(messages)
            spoken = time.monotonic()
        if watch.ended:
            return
        if time.monotonic() - spoken >= settings.heartbeat_seconds:
            yield ": still there\n\n"
            spoken = time.monotonic()
        await anyio.sleep(settings.poll_seconds)


async def _counted(messages: AsyncIterator[str], streams: Streams) -> AsyncIterator[str]:
    streams.count += 1
    try:
        async for each in messages:
            yield each
    finally:
        streams.count -= 1


def message(kind: str, data: object, cursor: Cursor | None) -> str:
    """One server-sent event."""
    number = f"id: {cursor}\n" if cursor else ""
    return f"{number}event: {kind}\ndata: {json.dumps(data, allow_nan=False, default=str)}\n\n"
