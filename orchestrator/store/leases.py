"""Who leads a run: leases, told by the database's own clock.

The clocks of several machines differ, and any clock may be set.  So what has expired is decided by
the one clock that all who share a database share, and nothing that matters rests on it: a commit
asks whose the lease is, not whether it has expired.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from sqlalchemy import ColumnElement, delete, func, or_, select, update
from sqlalchemy.orm import Session

from orchestrator.store.base import ENDED, LEASE, UNDER_WAY, RunStatus
from orchestrator.store.tables import RunRow, UtcDateTime
from strategies.errors import LeaseLostError, StaleRunStatusError

# No lease is given for longer; one that seems to be was written under a clock that was set back.
_LONGEST: Final = timedelta(minutes=5)


def clock(session: Session) -> datetime:
    """Now: the server's time on PostgreSQL, this machine's where the database is a file on it."""
    if session.get_bind().dialect.name != "postgresql":
        return datetime.now(UTC)
    now = session.scalar(select(func.clock_timestamp(type_=UtcDateTime)))
    return now or datetime.now(UTC)


def is_over(now: datetime) -> ColumnElement[bool]:
    """Whether nobody holds the lease of a run at ``now``."""
    return or_(
        RunRow.lease_owner.is_(None),
        RunRow.lease_expires_at < now,
        RunRow.lease_expires_at > now + _LONGEST,
    )


def take(
    session: Session, run_id: str, owner: str, ttl: timedelta, values: Mapping[str, Any]
) -> bool:
    """Take or keep the lease of a run that has not ended and write ``values``; whether it was free.

    The clock is read before the row is waited for, so that a wait lets no lease seem older.
    """
    now = clock(session)
    won = session.execute(
        update(RunRow)
        .where(
            RunRow.run_id == run_id,
            RunRow.status.not_in([status.value for status in ENDED]),
            or_(RunRow.lease_owner == owner, is_over(now)),
        )
        .values(lease_owner=owner, lease_expires_at=now + ttl, **values)
    )
    return bool(won.rowcount)  # type: ignore[attr-defined]  # every UPDATE has one


def require(session: Session, run_id: str, owner: str) -> None:
    """Renew the lease that ``owner`` must have, in the transaction whose writes depend on it.

    The row stays locked until the transaction ends, so nobody takes the lease in between.
    Raises: LeaseLostError.
    """
    held = session.execute(
        update(RunRow)
        .where(
            RunRow.run_id == run_id,
            RunRow.lease_owner == owner,
            RunRow.status.in_([status.value for status in UNDER_WAY]),
        )
        .values(lease_expires_at=clock(session) + LEASE)
    )
    if held.rowcount == 0:  # type: ignore[attr-defined]
        raise lost(session, run_id)


def with_times(session: Session, run_id: str, to: RunStatus, now: datetime) -> dict[str, Any]:
    """What a move to ``to`` changes besides the status: times, and the lease on the way out.

    No run ends before it began, whatever the clock says by then.
    """
    if to in ENDED:
        began = session.scalar(select(RunRow.started_at).where(RunRow.run_id == run_id))
        ended = max(now, began or now)
        return {"ended_at": ended, "lease_owner": None, "lease_expires_at": None}
    if to is RunStatus.RUNNING:
        return {"ended_at": None, "started_at": func.coalesce(RunRow.started_at, now)}
    return {"ended_at": None}


def forget(session: Session, run_id: str) -> None:
    """Delete a run that nobody leads, and with it all rows that name it.

    Raises: StaleRunStatusError.
    """
    idle = or_(RunRow.status.not_in([e.value for e in UNDER_WAY]), is_over(clock(session)))
    gone = session.execute(delete(RunRow).where(RunRow.run_id == run_id, idle))
    if gone.rowcount == 0 and (known := session.get(RunRow, run_id)):  # type: ignore[attr-defined]
        raise StaleRunStatusError(
            f"run {run_id} is {known.status} and led by an orchestrator; stop it first"
        )


def lost(session: Session, run_id: str) -> LeaseLostError:
    """Why the lease of the run is not to be had."""
    columns = select(RunRow.status, RunRow.lease_owner, RunRow.lease_expires_at)
    found = session.execute(columns.where(RunRow.run_id == run_id)).one_or_none()
    if found is None:
        return LeaseLostError(f"run {run_id} was deleted")
    status, owner, expires = found
    if owner is None or expires is None:
        return LeaseLostError(f"run {run_id} is {status} and no longer led from here")
    return LeaseLostError(
        f"another orchestrator ({owner}) has the lease of run {run_id} until {expires:%H:%M:%S} UTC"
    )
