"""What lies on a trainer's bench, and why a message may not be put there."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Protocol

from clients.answering import Progress
from strategies.errors import PerennialError
from strategies.types import ClientId


class BusyError(PerennialError):
    """The trainer is at work on something else."""


class StoppingError(PerennialError):
    """The trainer is about to end."""


class AbandonedError(Exception):
    """Ends the work on an answer nobody wants any more."""


@dataclass(slots=True, eq=False)
class Job:
    """A message on the bench; ``error`` says why there will be no answer."""

    client_id: ClientId
    message: bytes
    key: bytes
    run_id: str | None
    progress: list[Progress] = field(default_factory=list)
    answer: bytes | None = None
    error: str | None = None
    waiting: int = 1
    abandoned: bool = False

    @property
    def done(self) -> bool:
        return self.answer is not None or self.error is not None

    def has_news(self, seen: int) -> bool:
        """Whether there is more than the first ``seen`` reports of progress."""
        return self.done or len(self.progress) > seen

    def describe(self) -> str:
        """Whose it is and how far, for whoever has to wait."""
        at = self.progress[-1] if self.progress else Progress(phase="load")
        steps = f", step {at.step} of {at.steps}" if at.steps else ""
        return f"the trainer is at work for {self.client_id} ({at.phase}{steps}); ask again later"


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchStatus:
    """``idle_seconds`` since the last answer or, before the first, since the start."""

    model_loads: int
    runs_served: int
    answers: int
    busy: bool
    idle_seconds: float


class Observer(Protocol):
    """Takes note of what a bench does; called by its worker, and must not raise."""

    def heard(self, progress: Progress) -> None:
        """How far the work is."""
        ...

    def ended(self, job: Job, answer: bytes | None, error: str | None) -> None:
        """A job has its answer, or an error says why there is none."""
        ...

    def refused(self) -> None:
        """A message came while another one was worked on."""
        ...


class _Nobody:
    """Takes note of nothing."""

    def heard(self, progress: Progress) -> None:
        pass

    def ended(self, job: Job, answer: bytes | None, error: str | None) -> None:
        pass

    def refused(self) -> None:
        pass


UNOBSERVED: Final[Observer] = _Nobody()
