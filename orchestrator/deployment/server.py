"""The server's side of a federation: a SuperLink, and the node keys it admits."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Final

import psutil

from orchestrator.deployment.control import Control
from orchestrator.deployment.guard import Say
from orchestrator.deployment.processes import Children, Running, descendants, end_all
from orchestrator.deployment.registry import Registry
from orchestrator.deployment.server_settings import ServerSettings, last_words, program_of
from orchestrator.deployment.supervisor import Supervised
from orchestrator.stopping import GRACE_SECONDS
from strategies.errors import TransportError

_READY_SECONDS: Final = 120.0
_STOP_SECONDS: Final = 15.0
_LOOK_EVERY_SECONDS: Final = 2.0
_TICK_SECONDS: Final = 0.2


@dataclass(slots=True, kw_only=True)
class Server:
    """A SuperLink of ours, from its start to the end of everything it started.

    One that dies is started again on the same port with the same node keys.  Its runs do not
    outlive it: each is interrupted and can be resumed.
    """

    settings: ServerSettings
    say: Say
    superlink: Supervised
    registry: Registry | None = None
    _family: list[psutil.Process] = field(default_factory=list)
    _started_at: float = 0.0
    _looked_at: float = 0.0
    _ready: bool = False
    _ever_ready: bool = False

    @classmethod
    def prepare(cls, settings: ServerSettings, say: Say) -> Server:
        """Nothing is started yet, and one left behind by a crash is ended.

        ``say`` hears who was refused, and what died.
        """
        program, children = program_of(settings, say), Children(settings.folder / "children")
        children.end_left_behind(GRACE_SECONDS)  # of a `perennial server` that was killed
        server: Server

        def start() -> Running:
            running = Running.start(program)
            children.note(running)
            return running

        def verdict(code: int, lines: Sequence[str]) -> str | None:
            return None if server._ever_ready else last_words(code, lines, program.log_path)

        server = cls(
            settings=settings,
            say=say,
            superlink=Supervised(
                name="the SuperLink",
                start=start,
                is_ready=lambda: server._ready,
                verdict=verdict,
            ),
        )
        return server

    def serve(self, stopped: Callable[[], bool], on_ready: Callable[[], None]) -> None:
        """Keep a SuperLink running and follow the folder of node keys until ``stopped``.

        ``on_ready`` is called every time a new SuperLink answers and knows its nodes.
        Raises: TransportError if it ends before it has ever answered, or five times in a row
        before it answers again, or stays silent.
        """
        while not stopped():
            self._tick(time.monotonic(), on_ready)
            time.sleep(_TICK_SECONDS)

    def _tick(self, now: float, on_ready: Callable[[], None]) -> None:
        before = self.superlink.process
        self.superlink.tick(now)
        if self.superlink.process is not before:
            self._started_at = now
        if self.superlink.process is None:
            if before is not None:
                self._died(now)
        elif not self._ready:
            self._admit(now, on_ready)
        elif now - self._looked_at > _LOOK_EVERY_SECONDS:
            self._look()
            self._looked_at = now

    def _died(self, now: float) -> None:
        """Its ServerApps notice and interrupt their runs; the next one starts after them."""
        self.say(f"{self.superlink.reason}, again in {ceil(self.superlink.waits(now))} s")
        self._ready, self.registry = False, None
        _, left = psutil.wait_procs(self._family, timeout=GRACE_SECONDS)
        end_all(left, grace_seconds=1.0)
        self._family = []

    def _admit(self, now: float, on_ready: Callable[[], None]) -> None:
        """Register the nodes once it answers.

        Raises: TransportError if it has not within two minutes.
        """
        try:
            control = Control.open(self.settings.local)
            if self.settings.certificates is None:
                control.close()
            else:
                self.registry = Registry(self.settings.certificates.nodes, control, self.say)
                self.registry.synchronise()
                control.let_nodes_in()
        except TransportError as error:
            if now - self._started_at > _READY_SECONDS:
                path = self.settings.log_path
                text = f"{error}; it has had {_READY_SECONDS:g} s, see {path}"
                raise TransportError(text) from None
        else:
            self._ready = self._ever_ready = True
            on_ready()

    def _look(self) -> None:
        """Who belongs to it now, and which keys have come and gone."""
        process = self.superlink.process
        if isinstance(process, Running):
            self._family = descendants(process.process.pid)
        try:
            if self.registry:
                self.registry.synchronise()
        except TransportError as error:
            self.say(f"node keys not looked at: {error}")  # if it died, the next tick tells

    def stop(self) -> None:
        """Let runs under way stop at a safe point, then end the SuperLink and its helpers."""
        process = self.superlink.process
        family = descendants(process.process.pid) if isinstance(process, Running) else []
        end_all([p for p in family if _is_run(p)], grace_seconds=GRACE_SECONDS)
        self.superlink.end(_STOP_SECONDS)
        end_all([*family, *self._family], grace_seconds=1.0)


def _is_run(process: psutil.Process) -> bool:
    try:
        return any("flwr-serverapp" in word for word in process.cmdline()[:3])
    except psutil.Error:
        return False
