"""The sums beside the replies, kept in the transaction that writes these (``totals.py``)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

from sqlalchemy import delete, insert, select, update
from sqlalchemy.orm import Session

from orchestrator.store.base import RoundRecord
from orchestrator.store.bulk import bulk
from orchestrator.store.rows import read_rounds
from orchestrator.store.scores import packed
from orchestrator.store.tables import ClientRow, RoundRow, RunRow
from orchestrator.store.totals import (
    ClientTotals,
    RoundTotals,
    added,
    client_totals,
    finite,
    round_totals,
)

COLUMNS: Final = ("clients_ok", "clients_failed", "bytes_up", "bytes_down", "truncation_max")
CLIENT: Final = [getattr(ClientRow, name) for name in ClientTotals.__dataclass_fields__]
_AT_ONCE: Final = 500  # client ids in one statement


def lock(session: Session, run_id: str) -> None:
    """Keep others from changing the sums of a run until the transaction ends.

    SQLite drops FOR UPDATE, but there a writer is alone from the start of its transaction.
    """
    session.execute(select(RunRow.run_id).where(RunRow.run_id == run_id).with_for_update())


def progress_columns(progress: Mapping[str, Any]) -> dict[str, Any]:
    """A run's published progress, and what of it runs are sorted by."""
    return {
        "progress": dict(progress),
        **{name: finite(progress.get(name)) for name in ("acc", "forgetting")},
    }


def round_columns(record: RoundRecord) -> dict[str, Any]:
    """The sums of a step as they stand in its row."""
    totals = asdict(round_totals(record))
    columns = {name: totals.pop(name) for name in COLUMNS}
    return columns | {"totals": totals, "score_table": packed(record.scores)}


def round_totals_of(row: Mapping[str, Any]) -> RoundTotals:
    """The sums that stand in a step's row."""
    rest = dict(row["totals"])
    rest["failures"] = tuple((client, reason) for client, reason in rest.get("failures", ()))
    for name in ("ranks", "asked_ranks"):
        rest[name] = {int(rank): count for rank, count in rest.get(name, {}).items()}
    return RoundTotals(**{name: row[name] for name in COLUMNS}, **rest)


def add(session: Session, run_id: str, record: RoundRecord) -> None:
    """Add a step that was just written to the sums of its clients, and note its checkpoint."""
    ids = sorted({reply.client_id for reply in record.replies})
    known = {
        row["client_id"]: client_totals_of(row)
        for some in _batches(ids)
        for row in bulk(
            session,
            select(*CLIENT).where(ClientRow.run_id == run_id, ClientRow.client_id.in_(some)),
        )
    }
    for some in _batches(sorted(known)):
        session.execute(
            delete(ClientRow).where(ClientRow.run_id == run_id, ClientRow.client_id.in_(some))
        )
    write_clients(session, run_id, added(known, [record]).values())
    _note_checkpoint(session, run_id)


def sum_anew(session: Session, run_id: str) -> None:
    """The sums of a run whose steps changed otherwise than by one more."""
    session.execute(delete(ClientRow).where(ClientRow.run_id == run_id))
    write_clients(session, run_id, client_totals(read_rounds(session, run_id)))
    _note_checkpoint(session, run_id)


def write_clients(session: Session, run_id: str, clients: Iterable[ClientTotals]) -> None:
    """New rows of clients."""
    rows = [{"run_id": run_id, **asdict(client)} for client in clients]
    if rows:
        session.execute(insert(ClientRow), rows)


def client_totals_of(row: Mapping[str, Any]) -> ClientTotals:
    """The sums of a client's row."""
    return ClientTotals(**{name: row[name] for name in ClientTotals.__dataclass_fields__})


def _note_checkpoint(session: Session, run_id: str) -> None:
    newest = select(RoundRow.checkpoint).where(RoundRow.run_id == run_id)
    newest = newest.order_by(RoundRow.step_index.desc()).limit(1)
    session.execute(
        update(RunRow)
        .where(RunRow.run_id == run_id)
        .values(checkpoint=newest.scalar_subquery())
        .execution_options(synchronize_session=False)
    )


def _batches(ids: Sequence[str]) -> Iterable[Sequence[str]]:
    return (ids[start : start + _AT_ONCE] for start in range(0, len(ids), _AT_ONCE))
