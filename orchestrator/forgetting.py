"""Where forgetting happened: which task, while learning which, on which clients, in which groups.

Pure, from the record of a run.  Accuracies are fractions; tasks count from 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from orchestrator.metrics import AccuracyMatrix, by_client
from orchestrator.store.base import RoundRecord
from orchestrator.store.drift import DriftTable
from orchestrator.store.totals import RoundTotals, round_totals
from strategies.arrival import Arrivals

Json = dict[str, Any]


def explained(rounds: Sequence[RoundRecord], num_tasks: int, when: Arrivals | None = None) -> Json:
    """``explanation`` of a run that was read whole.

    ``when`` says when each client meets each task, None where every stage is a task.
    """
    scores = [score for record in rounds for score in record.scores]
    return explanation(
        [round_totals(record) for record in rounds],
        DriftTable.of_rounds(rounds),
        AccuracyMatrix.of(scores, num_tasks, when=when),
        by_client(scores, num_tasks, when),
    )


def explanation(
    totals: Sequence[RoundTotals],
    drift: DriftTable,
    matrix: AccuracyMatrix,
    own: Mapping[str, AccuracyMatrix],
) -> Json:
    """Tasks, clients and groups, those that lost or moved most first, and what replay cost.

    ``totals`` are those of the steps, ``matrix`` is the run's, ``own`` each client's.
    """
    return {
        "tasks": _tasks(matrix),
        "clients": _clients(own),
        "groups": _groups(drift),
        "replay": _replay(totals),
    }


def _tasks(matrix: AccuracyMatrix) -> list[Json]:
    """Every task but the last that has a best and a present score."""
    found, last = list[Json](), matrix.last_row
    for task, lost in enumerate(matrix.forgetting_per_task()):
        column = matrix.values[:, task]
        rows = [i for i in range(matrix.rows[task], last + 1) if np.isfinite(column[i])]
        if not np.isfinite(lost):
            continue
        best = max(rows[:-1], key=lambda i: column[i])
        drop, costliest = max(
            ((float(column[a] - column[b]), b - 1) for a, b in pairwise(rows)),
            key=lambda found: found[0],
        )
        found.append(
            {
                "task": task,
                "lost": float(lost),
                "best": float(column[best]),
                "best_after": best - 1,
                "final": float(column[last]),
                "costliest": costliest if drop > 0 else None,
                "costliest_drop": drop if drop > 0 else None,
            }
        )
    return sorted(found, key=lambda each: -each["lost"])


def _clients(own: Mapping[str, AccuracyMatrix]) -> list[Json]:
    """Every client whose forgetting is known."""
    found = list[Json]()
    for client, matrix in own.items():
        forgetting, lost = matrix.forgetting(), matrix.forgetting_per_task()
        if not np.isfinite(forgetting):
            continue
        worst = int(np.nanargmax(lost))
        found.append(
            {
                "client_id": client,
                "forgetting": forgetting,
                "task": worst,
                "task_lost": float(lost[worst]),
            }
        )
    return sorted(found, key=lambda each: -each["forgetting"])


def _groups(drift: DriftTable) -> list[Json]:
    """Every trained group, its drift averaged over rounds, and the task in which it was largest."""
    furthest = drift.furthest()
    found = [
        {"group": group, "drift": mean, "task": furthest[group]}
        for group, mean in drift.means().items()
    ]
    return sorted(found, key=lambda each: -each["drift"])


def _replay(totals: Sequence[RoundTotals]) -> Json:
    """Examples are counted each time a step is taken on them."""
    trained = sum(each.num_trained for each in totals)
    return {
        "num_replayed": int(sum(each.num_replayed for each in totals)),
        "num_trained": int(trained),
        "share": sum(each.num_replayed for each in totals) / trained if trained else None,
        "seconds": sum(each.replay_seconds for each in totals) if trained else None,
    }
