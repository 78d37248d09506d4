"""The accuracy matrix and what is read off it; pure.

Conventions (Lopez-Paz & Ranzato 2017, arXiv 1706.08840; Chaudhry et al. 2018, arXiv 1801.10112),
with ``R[i][j]`` the score on task j after learning task i, tasks counted from 1 and row 0 the
untrained model.  A cell that was not measured is NaN, never 0.  With T tasks learnt:

* ACC = mean_j R[T][j]; AIA = mean over i of AA_i, where AA_i = mean_{j≤i} R[i][j]
* BWT = mean_{j<T} (R[T][j] − R[j][j])
* FWT = mean_{j>1} (R[j−1][j] − R[0][j]), against the untrained model
* forgetting = mean_{j<T} (max_{j≤l<T} R[l][j] − R[T][j]); the last row is not in the maximum
* learning accuracy = mean_j R[j][j]

Where clients do not all meet the same task at once, rows are stages and task j has no row of its
own.  It then counts as learnt by row l(j), the first by whose end at least half of the clients that
are scored on it have met it, and every ``R[j][j]`` above reads ``R[l(j)][j]``, every "j ≤ i" reads
l(j) ≤ i, and T as a row is the last stage.  In FWT, R[l(j)−1][j] then holds what up to half of the
clients have taught already.  A client's own matrix has the rows in which it met the tasks itself.

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
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from orchestrator.store.base import RoundRecord, ScoreRecord
from strategies.arrival import Arrivals
from strategies.types import ClientId


@dataclass(frozen=True, eq=False)
class AccuracyMatrix:
    """``values (S+1, T)``, row 0 the untrained model, NaN where nothing was measured.

    ``learnt_by_all`` tells a client's matrix how far the run has come, None reads it off the rows.
    ``learnt_at`` gives the row by which each task counts as learnt, None: task j by row j + 1.
    """

    values: NDArray[np.float64]
    learnt_by_all: int | None = None
    learnt_at: tuple[int, ...] | None = None

    @classmethod
    def of(
        cls,
        scores: Iterable[ScoreRecord],
        num_tasks: int,
        learnt_by_all: int | None = None,
        when: Arrivals | None = None,
    ) -> AccuracyMatrix:
        """Pooled over clients: all correct over all examples; mid-task scores do not count.

        ``when`` says when each client meets each task, None where all meet the same at once.
        """
        counted = [score for score in scores if not score.mid_task]
        num_stages = when.num_stages if when else num_tasks
        correct, examples = np.zeros((2, num_stages + 1, num_tasks))
        for score in counted:
            correct[score.after_task + 1, score.task_index] += score.num_correct
            examples[score.after_task + 1, score.task_index] += score.num_examples
        values = np.divide(correct, examples, out=np.full_like(correct, np.nan), where=examples > 0)
        return cls(values, learnt_by_all, _learnt_at(when, counted, num_tasks) if when else None)

    @cached_property
    def rows(self) -> NDArray[np.intp]:
        """The row by which each task counts as learnt, (T,)."""
        if self.learnt_at:
            return np.array(self.learnt_at, dtype=np.intp)
        return np.arange(1, self.values.shape[1] + 1, dtype=np.intp)

    @property
    def num_learnt(self) -> int:
        """How many tasks count as learnt by the last row."""
        return int((self.rows <= self.last_row).sum())

    @cached_property
    def last_row(self) -> int:
        """The last row that was measured, 0 before the first task."""
        if self.learnt_by_all is not None:
            return self.learnt_by_all
        measured = np.flatnonzero(np.isfinite(self.values).any(axis=1))
        return int(measured[-1]) if len(measured) else 0

    @cached_property
    def scored(self) -> NDArray[np.intp]:
        """Indices of the tasks learnt, without those that have no test example."""
        last = self.last_row
        measured = np.isfinite(self.values[: last + 1]).any(axis=0)
        return np.flatnonzero(measured & (self.rows <= last))

    def acc(self) -> float:
        """Mean final score over the tasks learnt."""
        return _mean(self.values[self.last_row, self.scored])

    def average_accuracy(self) -> NDArray[np.float64]:
        """AA_i, the mean score over the tasks learnt by then, for every row but the first, (S,)."""
        stages, tasks = range(1, self.last_row + 1), self.scored
        return np.array([_mean(self.values[i, tasks[self.rows[tasks] <= i]]) for i in stages])

    def aia(self) -> float:
        """Average incremental accuracy."""
        if not len(self.scored):
            return float("nan")
        first = self.rows[self.scored].min()  # before it there is nothing to average
        return _mean(self.average_accuracy()[first - 1 :])

    def bwt(self) -> float:
        """Backward transfer; negative is forgetting."""
        earlier = self._earlier
        return _mean(self.values[self.last_row, earlier] - self._when_learnt(earlier))

    def fwt(self) -> float:
        """Forward transfer against the untrained model."""
        later = self.scored[self.rows[self.scored] > 1]
        return _mean(self.values[self.rows[later] - 1, later] - self.values[0, later])

    def forgetting_per_task(self) -> NDArray[np.float64]:
        """What each task has lost against its best, up to the last one learnt before the last row.

        Negative is a gain, NaN a task that was not learnt before the last row.
        """
        return self._lost

    @cached_property
    def _lost(self) -> NDArray[np.float64]:
        last, rows = self.last_row, self.rows
        count = int(np.flatnonzero(rows < last).max(initial=-1)) + 1
        before = np.arange(last)[:, None] >= rows[:count]
        earlier = np.where(before, self.values[:last, :count], np.nan)
        measured = np.isfinite(earlier)
        best = np.where(measured, earlier, -np.inf).max(axis=0, initial=-np.inf)
        return np.where(measured.any(axis=0), best, np.nan) - self.values[last, :count]

    def forgetting(self) -> float:
        """Mean loss of the earlier tasks against their best."""
        return _mean(self.forgetting_per_task()[self._earlier])

    def learning_accuracy(self) -> float:
        """Mean score right after learning."""
        return _mean(self._when_learnt(self.scored))

    def _when_learnt(self, tasks: NDArray[np.intp]) -> NDArray[np.float64]:
        return self.values[self.rows[tasks], tasks]

    @cached_property
    def _earlier(self) -> NDArray[np.intp]:
        return self.scored[self.rows[self.scored] < self.last_row]


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


def by_client(
    scores: Iterable[ScoreRecord], num_tasks: int, when: Arrivals | None = None
) -> dict[str, AccuracyMatrix]:
    """Every client's own matrix, all judged at the last row that the run has reached."""
    own = defaultdict[str, list[ScoreRecord]](list)
    for score in scores:
        own[score.client_id].append(score)
    everything = [score for each in own.values() for score in each]
    last = AccuracyMatrix.of(everything, num_tasks, when=when).last_row
    return {client: AccuracyMatrix.of(own[client], num_tasks, last, when) for client in sorted(own)}


def worst_decile(values: Sequence[float]) -> float:
    """Mean of the lowest tenth, at least one, of what was measured."""
    measured = np.sort([value for value in values if np.isfinite(value)])
    return _mean(measured[: max(1, len(measured) // 10)])


def headline(
    rounds: Sequence[RoundRecord], num_tasks: int, when: Arrivals | None = None
) -> dict[str, Any]:
    """What a listing shows of a run: the metrics by name, and the newest row of the matrix."""
    matrix = AccuracyMatrix.of((s for r in rounds for s in r.scores), num_tasks, when=when)
    row = matrix.values[matrix.last_row]
    return {
        **{name: metric(matrix) for name, metric in METRICS.items()},
        "accuracy": [None if np.isnan(value) else float(value) for value in row],
    }


def _learnt_at(when: Arrivals, scores: Iterable[ScoreRecord], num_tasks: int) -> tuple[int, ...]:
    """Per task, the first row by whose end half of the clients scored on it have met it.

    Of all clients, where nobody is scored on it.
    """
    holders = defaultdict[int, set[ClientId]](set)
    for score in scores:
        holders[score.task_index].add(ClientId(score.client_id))
    rows = list[int]()
    for task in range(num_tasks):
        stages = sorted(when.stage_of(client, task) for client in holders[task] or when.tasks)
        rows.append(stages[(len(stages) - 1) // 2] + 1)
    return tuple(rows)


def _mean(values: NDArray[np.float64]) -> float:
    """NaN of nothing, and of anything that was not measured."""
    return float(np.add.reduce(values) / len(values)) if len(values) else float("nan")
