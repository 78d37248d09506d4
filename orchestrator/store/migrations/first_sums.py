"""The sums of runs that were recorded before sums were kept: what revision 0003 fills in.

The columns are named as they are in that revision, whatever becomes of them later.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from orchestrator.store.base import ReplyRecord, RoundRecord, ScoreRecord
from orchestrator.store.sums import progress_columns, round_columns
from orchestrator.store.tables import AnyFloat, StrictJson, UtcDateTime
from orchestrator.store.totals import ClientTotals, added

_JSON = {"seconds", "metrics", "truncation", "drift", "ranks", "progress", "totals", "failures",
         "groups", "last_ranks", "last_metrics"}  # fmt: skip
_TYPES: Mapping[str, Any] = {"committed_at": UtcDateTime(), "loss_sum": AnyFloat()}


def _table(name: str, *columns: str) -> Any:  # its columns are known by name only
    kinds = [
        sa.column(each, StrictJson() if each in _JSON else _TYPES.get(each)) for each in columns
    ]
    return sa.table(name, *kinds)


_REPLY = tuple(name for name in ReplyRecord.__dataclass_fields__ if name != "client_kind")
_SCORE = tuple(ScoreRecord.__dataclass_fields__)
_ROUND = ("step_index", "task_index", "round_index", "kind", "committed_at", "checkpoint",
          "seconds", "metrics", "truncation", "drift")  # fmt: skip
_SUMS = ("clients_ok", "clients_failed", "bytes_up", "bytes_down", "totals")
RUNS = _table("runs", "run_id", "progress", "checkpoint", "acc", "forgetting")
ROUNDS = _table("rounds", "round_id", "run_id", *_ROUND, *_SUMS)
REPLIES = _table("replies", "reply_id", "round_id", *_REPLY)
SCORES = _table("scores", "score_id", "round_id", *_SCORE)
_CLIENT = tuple(name for name in ClientTotals.__dataclass_fields__ if name != "kind")
CLIENTS = _table("run_clients", "run_id", *_CLIENT)


def fill(connection: sa.Connection) -> None:
    """Make the sums of every run from its replies; one step is in memory at a time."""
    for run_id in connection.scalars(sa.select(RUNS.c.run_id)).all():
        _fill_run(connection, run_id)


def _fill_run(connection: sa.Connection, run_id: str) -> None:
    steps = sa.select(ROUNDS.c.round_id).where(ROUNDS.c.run_id == run_id)
    clients, newest = dict[str, ClientTotals](), None
    for round_id in connection.scalars(steps.order_by(ROUNDS.c.step_index)).all():
        record = _read(connection, round_id)
        this = sa.update(ROUNDS).where(ROUNDS.c.round_id == round_id)
        found = round_columns(record)
        connection.execute(this.values(**{name: found[name] for name in _SUMS}))
        clients, newest = added(clients, [record]), record.checkpoint
    if clients:
        rows = [
            {"run_id": run_id, **{name: getattr(client, name) for name in _CLIENT}}
            for client in clients.values()
        ]
        connection.execute(sa.insert(CLIENTS), rows)
    run = RUNS.c.run_id == run_id
    progress = connection.scalar(sa.select(RUNS.c.progress).where(run)) or {}
    changed = progress_columns(progress) | {"checkpoint": newest}
    connection.execute(sa.update(RUNS).where(run).values(**changed))


def _read(connection: sa.Connection, round_id: int) -> RoundRecord:
    """A step with its replies and scores."""
    row = connection.execute(
        sa.select(*(ROUNDS.c[name] for name in _ROUND)).where(ROUNDS.c.round_id == round_id)
    ).one()
    return RoundRecord(
        **row._mapping,
        replies=tuple(_parts(connection, REPLIES, _REPLY, ReplyRecord, round_id)),
        scores=tuple(_parts(connection, SCORES, _SCORE, ScoreRecord, round_id)),
    )


def _parts(connection: sa.Connection, *what: Any) -> list[Any]:
    table, names, kind, round_id = what
    key = table.c.reply_id if table is REPLIES else table.c.score_id
    wanted = sa.select(*(table.c[name] for name in names)).where(table.c.round_id == round_id)
    return [kind(**row._mapping) for row in connection.execute(wanted.order_by(key))]
