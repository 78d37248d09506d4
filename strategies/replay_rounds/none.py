"""Memories are replayed beside new examples, or not at all."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class NoReplayRounds:
    """No round trains on memories alone."""
