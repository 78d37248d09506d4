"""Waiting out a database that is away for a moment: which faults pass, and how long to try."""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeVar

from sqlalchemy import URL
from sqlalchemy.exc import DBAPIError, OperationalError

from orchestrator.store.address import scrubbed, shown
from orchestrator.store.faults import lasting, mendable
from orchestrator.store.same_file import DatabaseMovedError
from strategies.errors import StoreDamagedError, StoreUnreachableError

log = logging.getLogger(__name__)
T = TypeVar("T")
# SQLSTATE: serialization failure, deadlock, lock timeout, the server's shutting down (by order, by
# crash), starting up, and its having no connection left.  Class 08 is the connection itself.
_PASSING: Final = ("40001", "40P01", "55P03", "57P01", "57P02", "57P03", "53300", "08")


def is_transient(error: DBAPIError | DatabaseMovedError) -> bool:
    """Whether the same transaction may succeed if it is begun anew a little later."""
    if mendable(error) is not None or isinstance(error, DatabaseMovedError):
        return True
    if error.connection_invalidated:
        return True
    cause = error.orig
    if isinstance(cause, sqlite3.Error):
        name = getattr(cause, "sqlite_errorname", "")
        return name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED"))
    if state := getattr(cause, "sqlstate", None):
        return str(state).startswith(_PASSING)
    return isinstance(error, OperationalError)  # no connection came about


def first_line(error: Exception, url: URL) -> str:
    """What the driver said, in one line and without passwords."""
    lines = str(getattr(error, "orig", None) or error).splitlines()
    return scrubbed(lines[0] if lines else type(error).__name__, url)


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """Tries again after 0.1, 0.2, 0.4 … 2 s, until ``limit_seconds`` after the first try began."""

    limit_seconds: float = 30.0
    clock: Callable[[], float] = time.monotonic  # s
    sleep: Callable[[float], None] = time.sleep  # s

    def insist(self, what: str, url: URL, attempt: Callable[[], T]) -> T:
        """What ``attempt`` returns, once it does; ``what`` it does completes "while …".

        Raises: StoreUnreachableError at the limit; at once StoreDamagedError, and whatever else is
        not transient.
        """
        began, tries, wait = self.clock(), 0, 0.1
        while True:
            try:
                return attempt()
            except (DBAPIError, DatabaseMovedError) as error:
                tries, waited = tries + 1, self.clock() - began
                reason = first_line(error, url)
                if not is_transient(error):
                    if advice := lasting(error):
                        raise StoreDamagedError(_damaged(what, url, reason, advice)) from None
                    raise
                if waited >= self.limit_seconds:
                    raise StoreUnreachableError(
                        _gave_up(what, url, reason, waited, tries) + _to_do(mendable(error))
                    ) from None
            if tries == 1:
                log.warning("run database out of reach while %s, trying again: %s", what, reason)
            self.sleep(min(wait, self.limit_seconds - waited))
            wait = min(2 * wait, 2.0)


def _gave_up(what: str, url: URL, reason: str, waited: float, tries: int) -> str:
    return (
        f"run database {shown(url)} was out of reach for {waited:.0f} s ({tries} tries) while "
        f"{what}: {reason}. "
    )


def _to_do(advice: str | None) -> str:
    first = f"{advice}. " if advice else ""
    return (
        f"{first}Every committed round is kept; when the database answers again "
        "(`perennial doctor` tells), continue with `perennial resume RUN`"
    )


def _damaged(what: str, url: URL, reason: str, advice: str) -> str:
    return (
        f"run database {shown(url)} cannot be used while {what}: {reason}. {advice}; then continue "
        "with `perennial resume RUN`"
    )
