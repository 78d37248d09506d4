"""Keeps a process running: starts it, starts it again after a wait, gives up where that is vain."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from orchestrator.deployment.backoff import Backoff
from strategies.errors import RefusedError, TransportError

_STILLBORN: Final = 5


class Process(Protocol):
    """A started process, as far as its supervisor looks at it."""

    @property
    def lines(self) -> Sequence[str]:
        """The last lines it printed."""
        ...

    def poll(self) -> int | None:
        """Its exit code once it has ended."""
        ...

    def has_descendant(self, command: str) -> bool:
        """Whether a process that it started, or that one of those started, runs ``command``."""
        ...

    def end(self, grace_seconds: float) -> None:
        """End it and what it started."""
        ...


@dataclass(slots=True, kw_only=True)
class Supervised:
    """One process and its starts, by a clock in seconds that the caller keeps.

    ``start`` may raise TransportError for what time may mend and RefusedError for what it will not.
    ``is_ready`` says whether the running process has got as far as it should; one that ends
    before that five times in a row is given up.  ``verdict`` reads the exit code and the last
    lines of an ended process and names a reason that will not go away; ``passing`` reads the lines
    and names one that will, and is waited out however often it comes.
    """

    name: str
    start: Callable[[], Process]
    is_ready: Callable[[], bool]
    verdict: Callable[[int, Sequence[str]], str | None]
    passing: Callable[[Sequence[str]], str | None] = lambda _: None
    backoff: Backoff = field(default_factory=Backoff)
    process: Process | None = None
    failures: int = 0
    stillborn: int = 0
    restart_at: float = 0.0
    reason: str = ""
    _started_at: float = 0.0

    def tick(self, now: float) -> None:
        """Look after the process.

        Raises: RefusedError when it is given up.
        """
        if self.process is None:
            if now >= self.restart_at:
                self._start(now)
        elif (code := self.process.poll()) is not None:
            lines, ran = list(self.process.lines), now - self._started_at
            was_ready, self.process = self.is_ready(), None
            if final := self.verdict(code, lines):
                raise RefusedError(final)
            passing = self.passing(lines)
            self.stillborn = 0 if was_ready or passing else self.stillborn + 1
            self._failed(now, ran, passing or f"{self.name} ended with code {code}")
            if self.stillborn >= _STILLBORN:
                raise RefusedError(_given_up(self.name, self.stillborn, code, lines))

    def waits(self, now: float) -> float:
        """Seconds until the next start; 0 while it runs."""
        return 0.0 if self.process else max(self.restart_at - now, 0.0)

    def end(self, grace_seconds: float) -> None:
        """End the process, if there is one."""
        if self.process:
            self.process.end(grace_seconds)
            self.process = None

    def restart(self, now: float, reason: str, grace_seconds: float) -> None:
        """End a process that runs and does nothing, and have it started again after the wait."""
        self.end(grace_seconds)
        self._failed(now, now - self._started_at, reason)

    def _start(self, now: float) -> None:
        try:
            self.process, self._started_at = self.start(), now
            self.reason = ""
        except RefusedError:
            raise
        except TransportError as error:
            self._failed(now, 0.0, str(error))

    def _failed(self, now: float, ran_seconds: float, reason: str) -> None:
        self.failures = self.backoff.failures_after(self.failures, ran_seconds)
        self.restart_at = now + self.backoff.delay_seconds(self.failures)
        self.reason = reason


def _given_up(name: str, times: int, code: int, lines: Sequence[str]) -> str:
    last = "\n  ".join(line for line in lines[-5:] if line.strip())
    said = f"; it last said:\n  {last}" if last else ""
    return f"{name} ended {times} times in a row before it was ready (code {code}){said}"
