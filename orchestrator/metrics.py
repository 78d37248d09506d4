"""The accuracy matrix and what is read off it; pure.

Conventions (Lopez-Paz & Ranzato 2017, arXiv 1706.08840; Chaudhry et al. 2018, arXiv 1801.10112),
with ``R[i][j]`` the score on task j after learning task i, tasks counted from 1 and row 0 the
untrained model.  A cell that was not measured is NaN, never 0.  With T tasks learnt:

* ACC = mean_j R[T][j]; AIA = mean over i of AA_i, where AA_i = mean_{j≤i} R[i][j]
* BWT = mean_{j<T} (R[T][j] − R[j][j])
* FWT = mean_{j>1} (R[j−1][j] − R[0][j]), against the untrained model
* forgetting = mean_{j<T} (max_{j≤l<T} R[l][j] − R[T][j]); the last row is not in the maximum
* learning accuracy = mean_j R[j][j]

T is the last task learnt, so that a run under way is judged on the tasks it has met.  With one task
BWT, FWT and forgetting do not exist and are NaN.  A task without any test example is left out of
every mean.  If another cell that a mean needs is missing, as the diagonal is after joint training,
the metric is NaN rather than a mean over fewer tasks, so that ACC = LA + BWT·(T−1)/T wherever all
three exist; only the maximum in forgetting is taken over the rows that were measured.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from orchestrator.store.base import RoundRecord, ScoreRecord


@dataclass(frozen=True, slots=True, eq=False)
class AccuracyMatrix:
    """``values (T+1, T)``, row 0 the untrained model, NaN where nothing was measured.

    ``learnt_by_all`` tells a client's matrix how far the run has come, None reads it off the rows.
    """

    values: NDArray[np.float64]
    learnt_by_all: int | None = None

    @classmethod
    def of(
        cls, scores: Iterable[ScoreRecord], num_tasks: int, learnt_by_all: int | None = None
    ) -> AccuracyMatrix:
        """Pooled over clients: all correct over all examples; mid-task scores do not count."""
        correct, examples = np.zeros((2, num_tasks + 1, num_tasks))
        for score in scores:
            if not score.mid_task:
                correct[score.after_task + 1, score.task_index] += score.num_correct
                examples[score.after_task + 1, score.task_index] += score.num_examples
        nothing = np.full_like(correct, np.nan)
        return cls(np.divide(correct, examples, out=nothing, where=examples > 0), learnt_by_all)

    @property
    def num_learnt(self) -> int:
        """T: the last row that was measured, 0 before the first task."""
        if self.learnt_by_all is not None:
            return self.learnt_by_all
        measured = np.flatnonzero(np.isfinite(self.values).any(axis=1))
        return int(measured[-1]) if len(measured) else 0

    @property
    def scored(self) -> NDArray[np.intp]:
        """Indices of the tasks learnt, without those that have no test example."""
        last = self.num_learnt
        return np.flatnonzero(np.isfinite(self.values[: last + 1, :last]).any(axis=0))

    def acc(self) -> float:
        """Mean final score over the tasks learnt."""
        return _mean(self.values[self.num_learnt, self.scored])

    def average_accuracy(self) -> NDArray[np.float64]:
        """AA_i, the mean score over the tasks learnt by then, for every row but the first, (T,)."""
        rows, tasks = range(1, self.num_learnt + 1), self.scored
        return np.array([_mean(self.values[i, tasks[tasks < i]]) for i in rows])

    def aia(self) -> float:
        """Average incremental accuracy."""
        first = self.scored[:1]  # before the first scored task there is nothing to average
        return _mean(self.average_accuracy()[int(first[0]) :]) if len(first) else float("nan")

    def bwt(self) -> float:
        """Backward transfer; negative is forgetting."""
        earlier = self._earlier
        return _mean(self.values[self.num_learnt, earlier] - self.values[earlier + 1, earlier])

    def fwt(self) -> float:
        """Forward transfer against the untrained model."""
        later = self.scored[self.scored > 0]
        return _mean(self.values[later, later] - self.values[0, later])

    def forgetting_per_task(self) -> NDArray[np.float64]:
        """What each earlier task has lost against its best, (T−1,); negative is a gain."""
        last = self.num_learnt
        best = [_max(self.values[j + 1 : last, j]) for j in range(last - 1)]
        return np.array(best) - self.values[last, : len(best)]

    def forgetting(self) -> float:
        """Mean loss of the earlier tasks against their best."""
        return _mean(self.forgetting_per_task()[self._earlier])

    def learning_accuracy(self) -> float:
        """Mean score right after learning."""
        return _mean(self.values[self.scored + 1, self.scored])

    @property
    def _earlier(self) -> NDArray[np.intp]:
        return self.scored[self.scored < self.num_learnt - 1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Flips:
    """Examples that changed sides between the last release and a state, pooled over clients.

    Of the ``num_compared`` that both answered, the negative flip rate NFR is the share that was
    right and is wrong, the positive one PFR the share that was wrong and is right; both are NaN of
    nothing.  PFR − NFR is the change in accuracy on those examples.
    Source: MUSCLE, arXiv 2407.09435.
    """

    num_lost: int
    num_gained: int
    num_compared: int

    @classmethod
    def of(cls, scores: Iterable[ScoreRecord], after_task: int, tasks: Collection[int]) -> Flips:
        """On ``tasks``, at the evaluation after ``after_task``."""
        found = [
            score
            for score in scores
            if score.after_task == after_task and score.task_index in tasks and not score.mid_task
        ]
        return cls(
            num_lost=sum(score.num_lost for score in found),
            num_gained=sum(score.num_gained for score in found),
            num_compared=sum(score.num_compared for score in found),
        )

    @property
    def nfr(self) -> float:
        """Negative flip rate."""
        return self.num_lost / self.num_compared if self.num_compared else float("nan")

    @property
    def pfr(self) -> float:
        """Positive flip rate."""
        return self.num_gained / self.num_compared if self.num_compared else float("nan")


METRICS: Final[Mapping[str, Callable[[AccuracyMatrix], float]]] = {
    "acc": AccuracyMatrix.acc,
    "aia": AccuracyMatrix.aia,
    "bwt": AccuracyMatrix.bwt,
    "fwt": AccuracyMatrix.fwt,
    "forgetting": AccuracyMatrix.forgetting,
    "learning_accuracy": AccuracyMatrix.learning_accuracy,
}


def by_client(scores: Iterable[ScoreRecord], num_tasks: int) -> dict[str, AccuracyMatrix]:
    """Every client's own matrix, all judged at the last task that the run has learnt."""
    own = defaultdict[str, list[ScoreRecord]](list)
    for score in scores:
        own[score.client_id].append(score)
    everything = [score for each in own.values() for score in each]
    learnt = AccuracyMatrix.of(everything, num_tasks).num_learnt
    return {client: AccuracyMatrix.of(own[client], num_tasks, learnt) for client in sorted(own)}


def worst_decile(values: Sequence[float]) -> float:
    """Mean of the lowest tenth, at least one, of what was measured."""
    measured = np.sort([value for value in values if np.isfinite(value)])
    return _mean(measured[: max(1, len(measured) // 10)])


def headline(rounds: Sequence[RoundRecord], num_tasks: int) -> dict[str, Any]:
    """What a listing shows of a run: the metrics by name, and the newest row of the matrix."""
    matrix = AccuracyMatrix.of((s for r in rounds for s in r.scores), num_tasks)
    row = matrix.values[matrix.num_learnt]
    return {
        **{name: metric(matrix) for name, metric in METRICS.items()},
        "accuracy": [None if np.isnan(value) else float(value) for value in row],
    }


def _mean(values: NDArray[np.float64]) -> float:
    """NaN of nothing, and of anything that was not measured."""
    return float(values.mean()) if len(values) else float("nan")


def _max(values: NDArray[np.float64]) -> float:
    """NaN if nothing was measured."""
    measured = values[np.isfinite(values)]
    return float(measured.max()) if len(measured) else float("nan")
