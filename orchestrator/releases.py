"""Which states were published, read off the record; pure."""

from __future__ import annotations

from collections.abc import Iterable

from orchestrator.store.base import RoundRecord


def last_release(rounds: Iterable[RoundRecord]) -> int | None:
    """The step that scored the last published state; None before the first."""
    scored = [r.step_index for r in rounds if r.kind == "evaluate" and r.task_index >= 0]
    return max(scored, default=None)
