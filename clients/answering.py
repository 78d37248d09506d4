"""Who answers a client's messages, and how it tells how far it is; imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from strategies.types import ClientId


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where the work on an answer is: ``step`` of ``steps`` local ones, both 0 outside training.

    ``seconds`` is how long that step took, None if none was taken; ``examples`` and, of a text
    model, ``tokens`` are those of its batch.
    """

    phase: str
    step: int = 0
    steps: int = 0
    seconds: float | None = field(default=None, compare=False)
    examples: int = field(default=0, compare=False)
    tokens: int = field(default=0, compare=False)


Listener = Callable[[Progress], None]
"""Called from within the work; what it raises ends the work with nothing saved."""


def unheard(progress: Progress) -> None:
    """Nobody listens."""


class Answering(Protocol):
    """Answers messages of ``strategies.wire``."""

    def answer(self, client_id: ClientId, message: bytes) -> bytes:
        """The reply to any message of ours; this client's faults come back as values."""
        ...


class Trainer(Answering, Protocol):
    """Answers with a model it keeps loaded."""

    model_loads: int

    def forget(self) -> None:
        """Drop the model and the data and free their memory; the next message loads them again."""
        ...
