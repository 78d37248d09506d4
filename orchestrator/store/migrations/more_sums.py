"""The sums that revision 0004 adds, of runs recorded before it.

The columns are named as they are in that revision, whatever becomes of them later.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any, Final

import sqlalchemy as sa

from orchestrator.store.base import ScoreRecord
from orchestrator.store.scores import packed
from orchestrator.store.tables import StrictJson
from orchestrator.store.totals import finite

_SCORE: Final = ("client_id", "after_task", "task_index", "num_examples", "num_correct",
                 "num_lost", "num_gained", "num_compared")  # fmt: skip
_RUNS: Final = sa.table("runs", sa.column("run_id"))
_ROUNDS: Final = sa.table(
    "rounds", sa.column("round_id"), sa.column("run_id"),
    sa.column("truncation", StrictJson()), sa.column("truncation_max", sa.Double()),
    sa.column("score_table", StrictJson()),
)  # fmt: skip
_SCORES: Final = sa.table(
    "scores",
    *map(sa.column, ("score_id", "round_id", *_SCORE)),
    sa.column("mid_task", sa.Boolean()),
)


def fill(connection: sa.Connection) -> None:
    """Make them run by run; one run's scores are in memory at a time."""
    for run_id in connection.scalars(sa.select(_RUNS.c.run_id)).all():
        _fill_truncation(connection, run_id)
        _fill_scores(connection, run_id)


def _fill_truncation(connection: sa.Connection, run_id: str) -> None:
    rounds = sa.select(_ROUNDS.c.round_id, _ROUNDS.c.truncation).where(_ROUNDS.c.run_id == run_id)
    _set(
        connection,
        _ROUNDS.c.truncation_max,
        {number: finite(max(cut.values())) for number, cut in connection.execute(rounds) if cut},
    )


def _fill_scores(connection: sa.Connection, run_id: str) -> None:
    columns = [_SCORES.c.round_id, *(_SCORES.c[name] for name in _SCORE)]
    wanted = (
        sa.select(*columns)
        .join(_ROUNDS, _ROUNDS.c.round_id == _SCORES.c.round_id)
        .where(_ROUNDS.c.run_id == run_id, _SCORES.c.mid_task.is_(False))
        .order_by(_SCORES.c.score_id)
    )
    found = defaultdict[int, list[ScoreRecord]](list)
    for number, *values in connection.execute(wanted):
        found[number].append(ScoreRecord(**dict(zip(_SCORE, values, strict=True)), loss_sum=0.0))
    tables = {number: packed(scores) for number, scores in found.items()}
    _set(connection, _ROUNDS.c.score_table, tables)


def _set(connection: sa.Connection, column: Any, values: dict[int, Any]) -> None:
    """One column of some rounds, by their numbers."""
    changed = sa.update(_ROUNDS).where(_ROUNDS.c.round_id == sa.bindparam("number"))
    changed = changed.values({column: sa.bindparam("value", type_=column.type)})
    if values:
        rows = [{"number": number, "value": value} for number, value in values.items()]
        connection.execute(changed, rows)
