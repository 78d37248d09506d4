"""How a run that is under way is asked to stop, and what is put on record once it has ended."""

from __future__ import annotations

from typing import Final

from orchestrator.store.base import RunStatus, RunStore
from strategies.errors import StaleRunStatusError

ALIVE: Final = (RunStatus.CREATED, RunStatus.RUNNING, RunStatus.STOPPING)
GRACE_SECONDS: Final = 45.0  # a run's way to its next safe point


def ask_to_stop(run_id: str, store: RunStore) -> bool:
    """Have a run stop at its next safe point; False if it has not started yet or is over."""
    reason = "interrupted from the keyboard"
    try:
        store.transition(run_id, RunStatus.STOPPING, expected=(RunStatus.RUNNING,), reason=reason)
    except StaleRunStatusError:
        return False
    return True


def settled(run_id: str, store: RunStore, reason: str) -> RunStatus:
    """The final status of a run whose process is gone; interrupted for ``reason`` without one."""
    status = store.get_run(run_id).status
    if status not in ALIVE:
        return status
    return store.transition(run_id, RunStatus.INTERRUPTED, expected=ALIVE, reason=reason).status
