"""The sums that revision 0004 adds, of runs recorded before it.

The columns are named as they are in that revision, whatever becomes of them later.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Final

import sqlalchemy as sa

from orchestrator.store.base import ScoreRecord
from orchestrator.store.scores import packed
from orchestrator.store.tables import StrictJson
from orchestrator.store.totals import finite, rank_counts

_SCORE: Final = ("client_id", "after_task", "task_index", "num_examples", "num_correct",
                 "num_lost", "num_gained", "num_compared")  # fmt: skip
_RUNS: Final = sa.table("runs", sa.column("run_id"))
_ROUNDS: Final = sa.table(
    "rounds", sa.column("round_id"), sa.column("run_id"),
    sa.column("truncation", StrictJson()), sa.column("truncation_max", sa.Double()),
    sa.column("totals", StrictJson()), sa.column("score_table", StrictJson()),
)  # fmt: skip
_REPLIES: Final = sa.table("replies", sa.column("round_id"), sa.column("ranks", StrictJson()))
_SCORES: Final = sa.table(
    "scores",
    *map(sa.column, ("score_id", "round_id", *_SCORE)),
    sa.column("mid_task", sa.Boolean()),
)


def fill(connection: sa.Connection) -> None:
    """Make them run by run; one run's scores are in memory at a time."""
    for run_id in connection.scalars(sa.select(_RUNS.c.run_id)).all():
        _fill_run(connection, run_id)


def _fill_run(connection: sa.Connection, run_id: str) -> None:
    columns = [_ROUNDS.c[name] for name in ("round_id", "truncation", "totals")]
    rounds = connection.execute(sa.select(*columns).where(_ROUNDS.c.run_id == run_id)).all()
    asked, scores = _asked_ranks(connection, run_id), _scores(connection, run_id)
    rows = [
        {
            "number": number,
            "largest": finite(max(truncation.values(), default=None)),
            "sums": {**totals, "asked_ranks": dict(sorted(asked[number].items()))},
            "packed": packed(scores[number]),
        }
        for number, truncation, totals in rounds
    ]
    changed = sa.update(_ROUNDS).where(_ROUNDS.c.round_id == sa.bindparam("number"))
    changed = changed.values(
        truncation_max=sa.bindparam("largest"),
        totals=sa.bindparam("sums", type_=StrictJson()),
        score_table=sa.bindparam("packed", type_=StrictJson()),
    )
    if rows:
        connection.execute(changed, rows)


def _asked_ranks(connection: sa.Connection, run_id: str) -> Mapping[int, Counter[int]]:
    """Most replies were asked for the same ranks as others, so the database counts whole texts."""
    text = sa.cast(_REPLIES.c.ranks, sa.Text)
    counted = (
        sa.select(_REPLIES.c.round_id, text, sa.func.count())
        .join(_ROUNDS, _ROUNDS.c.round_id == _REPLIES.c.round_id)
        .where(_ROUNDS.c.run_id == run_id)
        .group_by(_REPLIES.c.round_id, text)
    )
    found = defaultdict[int, Counter[int]](Counter)
    for number, ranks, count in connection.execute(counted):
        for rank, groups in rank_counts([json.loads(ranks)]).items():
            found[number][rank] += groups * count
    return found


def _scores(connection: sa.Connection, run_id: str) -> Mapping[int, list[ScoreRecord]]:
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
    return found
