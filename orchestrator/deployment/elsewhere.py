"""A trainer that somebody else keeps running, such as a container beside ours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.deployment.health import trouble
from strategies.errors import TransportError


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """Takes the place of a process of ours; its life and death are not ours to decide.

    Once it has been reached it counts as running: an order waits for a trainer that is away.
    """

    address: str
    lines: Sequence[str] = ()

    @classmethod
    def reached(cls, address: str) -> Elsewhere:
        """The trainer at a Unix socket, ``unix:PATH``.

        Raises: TransportError if none takes work there.
        """
        if found := trouble(address):
            raise TransportError(found)
        return cls(address)

    def poll(self) -> int | None:
        """It never ends, as far as we can see."""
        return None

    def has_descendant(self, command: str) -> bool:
        """What it started is not ours to see."""
        return False

    def end(self, grace_seconds: float) -> None:
        """It is left running."""
