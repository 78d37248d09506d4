"""How a run that is under way is asked to stop, and what is put on record once it has ended."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

from orchestrator.owners import is_gone
from orchestrator.store.base import ALIVE, RunRecord, RunStatus, RunStore
from strategies.errors import StaleRunStatusError

GRACE_SECONDS: Final = 45.0  # a run's way to its next safe point


def ask_to_stop(
    run_id: str, store: RunStore, reason: str = "interrupted from the keyboard"
) -> bool:
    """Have a run stop at its next safe point; False if it has not started yet or is over."""
    try:
        store.transition(run_id, RunStatus.STOPPING, expected=(RunStatus.RUNNING,), reason=reason)
    except StaleRunStatusError:
        return False
    return True


def is_led(run: RunRecord) -> bool:
    """Whether an orchestrator that may be alive holds the lease of the run."""
    owner, expires = run.lease_owner, run.lease_expires_at
    if owner is None or expires is None or expires < datetime.now(UTC):
        return False
    return not is_gone(owner)


def settled(run_id: str, store: RunStore, reason: str) -> RunStatus:
    """The final status of a run whose process is gone; interrupted for ``reason`` without one.

    A run that another orchestrator leads by now is left to it, and is interrupted for us alone.
    """
    run = store.get_run(run_id)
    if run.status not in ALIVE:
        return run.status
    if is_led(run):
        return RunStatus.INTERRUPTED
    return store.transition(run_id, RunStatus.INTERRUPTED, expected=ALIVE, reason=reason).status
