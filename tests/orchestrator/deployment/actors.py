"""Processes that do what a test says."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Actor:
    """A process that ends when the test says so."""

    lines: list[str] = field(default_factory=list)
    code: int | None = None
    ended: bool = False
    descendants: tuple[str, ...] = ()

    def poll(self):
        return self.code

    def end(self, grace_seconds):
        self.ended = True

    def has_descendant(self, command):
        return command in self.descendants
