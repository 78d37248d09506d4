"""The accuracy matrix and what is read off it; pure.

Conventions (Lopez-Paz & Ranzato 2017, arXiv 1706.08840; Chaudhry et al. 2018, arXiv 1801.10112),
with ``R[i][j]`` the score on task j after learning task i, tasks counted from 1 and row 0 the
untrained model.  A cell that was not measured is NaN, never 0.  With T tasks learnt:

* ACC = mean_j R[T][j]; AIA = mean over i of mean_{j≤i} R[i][j]
* BWT = mean_{j<T} (R[T][j] − R[j][j])
* FWT = mean_{j>1} (R[j−1][j] − R[0][j]), against the untrained model
* forgetting = mean_{j<T} (max_{j≤l<T} R[l][j] − R[T][j]); the last row is not in the maximum
* learning accuracy = mean_j R[j][j]

T is the last task learnt, so that a run under way is judged on the tasks it has met.  With one task
BWT, FWT and forgetting do not exist and are NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.store.base import RoundRecord, ScoreRecord


@dataclass(frozen=True, slots=True)
class AccuracyMatrix:
    """``values (T+1, T)``, row 0 the untrained model, NaN where nothing was measured."""

    values: NDArray[np.float64]

    @classmethod
    def of(cls, scores: Iterable[ScoreRecord], num_tasks: int) -> AccuracyMatrix:
        """Pooled over clients: all correct over all examples; mid-task scores do not count."""
        correct, examples = np.zeros((2, num_tasks + 1, num_tasks))
        for score in scores:
            if not score.mid_task:
                correct[score.after_task + 1, score.task_index] += score.num_correct
                examples[score.after_task + 1, score.task_index] += score.num_examples
        nothing = np.full_like(correct, np.nan)
        return cls(np.divide(correct, examples, out=nothing, where=examples > 0))

    @property
    def num_learnt(self) -> int:
        """T: the last row that was measured, 0 before the first task."""
        measured = np.flatnonzero(np.isfinite(self.values).any(axis=1))
        return int(measured[-1]) if len(measured) else 0

    @property
    def final(self) -> NDArray[np.float64]:
        """The last measured row over the tasks learnt, (T,)."""
        return self.values[self.num_learnt, : self.num_learnt]

    @property
    def learnt(self) -> NDArray[np.float64]:
        """Each task's score right after it was learnt, (T,)."""
        tasks = np.arange(self.num_learnt)
        return self.values[tasks + 1, tasks]

    @property
    def best_before(self) -> NDArray[np.float64]:
        """Each earlier task's best score from its own row to the last but one, (T−1,)."""
        last = self.num_learnt
        columns = [self.values[j + 1 : last, j] for j in range(last - 1)]
        return np.array([_max(column) for column in columns])

    def acc(self) -> float:
        """Mean final score over the tasks learnt."""
        return _mean(self.final)

    def aia(self) -> float:
        """Average incremental accuracy; NaN where a row is missing, as in joint training."""
        rows = [_mean(self.values[i, :i]) for i in range(1, self.num_learnt + 1)]
        return float(np.mean(rows)) if rows else float("nan")

    def bwt(self) -> float:
        """Backward transfer; negative is forgetting."""
        return _mean((self.final - self.learnt)[:-1])

    def fwt(self) -> float:
        """Forward transfer against the untrained model."""
        tasks = np.arange(1, self.num_learnt)
        return _mean(self.values[tasks, tasks] - self.values[0, tasks])

    def forgetting_per_task(self) -> NDArray[np.float64]:
        """What each earlier task has lost against its best, (T−1,)."""
        return self.best_before - self.final[: len(self.best_before)]

    def forgetting(self) -> float:
        """Mean loss of the earlier tasks against their best."""
        return _mean(self.forgetting_per_task())

    def learning_accuracy(self) -> float:
        """Mean score right after learning; NaN where a row is missing, as in joint training."""
        measured = np.isfinite(self.values[1 : self.num_learnt + 1]).any(axis=1).all()
        return _mean(self.learnt) if measured else float("nan")


def headline(rounds: Sequence[RoundRecord], num_tasks: int) -> dict[str, Any]:
    """What a listing shows of a run: the metrics by name, and the newest row of the matrix."""
    matrix = AccuracyMatrix.of((s for r in rounds for s in r.scores), num_tasks)
    row = matrix.values[matrix.num_learnt]
    return {
        **{name: metric(matrix) for name, metric in METRICS.items()},
        "accuracy": [None if np.isnan(value) else float(value) for value in row],
    }


METRICS: dict[str, Callable[[AccuracyMatrix], float]] = {
    "acc": AccuracyMatrix.acc,
    "aia": AccuracyMatrix.aia,
    "bwt": AccuracyMatrix.bwt,
    "fwt": AccuracyMatrix.fwt,
    "forgetting": AccuracyMatrix.forgetting,
    "learning_accuracy": AccuracyMatrix.learning_accuracy,
}


def _mean(values: Sequence[float] | NDArray[np.float64]) -> float:
    """The mean of what was measured, NaN of nothing."""
    measured = np.asarray(values, dtype=np.float64)
    measured = measured[np.isfinite(measured)]
    return float(measured.mean()) if len(measured) else float("nan")


def _max(values: NDArray[np.float64]) -> float:
    measured = values[np.isfinite(values)]
    return float(measured.max()) if len(measured) else float("nan")
