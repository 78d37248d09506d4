"""The scores of a run's accuracy matrix as columns: there are tens of thousands of them.

They stand in their step's row too, packed, because reading as many rows takes ten times as long.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from orchestrator.store.base import RoundRecord, ScoreRecord

NUMBERS: Final = (
    "step_index", "after_task", "task_index", "num_examples", "num_correct", "num_lost",
    "num_gained", "num_compared",
)  # fmt: skip
_CLIENT: Final = "client_id"
_UNTRAINED: Final = -1  # the task after which the untrained model is scored


@dataclass(frozen=True, slots=True, eq=False)
class ScoreTable:
    """``numbers (N, 8)`` has a row per score and the columns ``NUMBERS``; ``clients`` their ids."""

    clients: Sequence[str]
    numbers: NDArray[np.int64]

    @classmethod
    def of(cls, steps: Iterable[tuple[int, Mapping[str, Any]]]) -> ScoreTable:
        """From the packed scores of steps by their index."""
        clients, numbers = list[str](), [np.empty((len(NUMBERS), 0), dtype=np.int64)]
        for step, columns in steps:
            if columns:
                of_step = np.empty((len(NUMBERS), len(columns[_CLIENT])), dtype=np.int64)
                of_step[0] = step
                for row, name in enumerate(NUMBERS[1:], start=1):
                    of_step[row] = columns[name]
                numbers.append(of_step)
                clients += columns[_CLIENT]
        return cls(clients, np.concatenate(numbers, axis=1).T)

    @classmethod
    def of_rounds(cls, rounds: Iterable[RoundRecord]) -> ScoreTable:
        """Of steps that were read whole."""
        return cls.of((record.step_index, packed(record.scores)) for record in rounds)

    def plus(self, more: ScoreTable) -> ScoreTable:
        """With more rows."""
        numbers = np.concatenate((self.numbers, more.numbers))
        return ScoreTable([*self.clients, *more.clients], numbers)

    def column(self, name: str) -> NDArray[np.int64]:
        """One of ``NUMBERS``, (N,)."""
        return self.numbers[:, NUMBERS.index(name)]

    def by_step(self) -> Mapping[int, tuple[ScoreRecord, ...]]:
        """Every score as a record; losses are not kept here."""
        found = defaultdict[int, list[ScoreRecord]](list)
        for client, (step, *rest) in zip(self.clients, self.numbers.tolist(), strict=True):
            found[step].append(_record(client, rest))
        return {step: tuple(scores) for step, scores in found.items()}

    def pooled_by_step(self) -> Mapping[int, tuple[ScoreRecord, ...]]:
        """Scores summed over clients, which say the same of the run as a whole."""
        found = defaultdict[int, list[ScoreRecord]](list)
        where = self.numbers[:, :3] - (0, _UNTRAINED, 0)
        shape = tuple(where.max(axis=0, initial=0) + 1)
        cells, place = np.unique(np.ravel_multi_index(tuple(where.T), shape), return_inverse=True)
        sums = [np.bincount(place, column, len(cells)) for column in self.numbers[:, 3:].T]
        steps, after, tasks = np.unravel_index(cells, shape)
        columns = [steps, after + _UNTRAINED, tasks, *(each.astype(np.int64) for each in sums)]
        for step, *rest in zip(*(column.tolist() for column in columns), strict=True):
            found[step].append(_record("", rest))
        return {step: tuple(scores) for step, scores in found.items()}

    def matrices(self, num_rows: int, num_tasks: int) -> dict[str, NDArray[np.float64]]:
        """By client id, what share was right after each stage on each task, (num_rows, num_tasks).

        NaN where nothing was measured.
        """
        place = {name: i for i, name in enumerate(sorted(set(self.clients)))}
        who = np.fromiter(map(place.__getitem__, self.clients), np.int64, len(self.clients))
        shape = (len(place), num_rows, num_tasks)
        where = (who, self.column("after_task") - _UNTRAINED, self.column("task_index"))
        cells = np.ravel_multi_index(where, shape)
        correct, examples = (
            np.bincount(cells, self.column(name), math.prod(shape)).reshape(shape)
            for name in ("num_correct", "num_examples")
        )
        values = np.divide(correct, examples, out=np.full(shape, np.nan), where=examples > 0)
        return dict(zip(place, values, strict=True))


def packed(scores: Iterable[ScoreRecord]) -> dict[str, Any]:
    """A step's scores by column, without their losses; empty without any.

    A column whose numbers are all alike is that number.  Mid-task scores are not of the matrix.
    """
    kept = [score for score in scores if not score.mid_task]
    if not kept:
        return {}
    columns = {name: [getattr(score, name) for score in kept] for name in NUMBERS[1:]}
    alike = {name: column[0] for name, column in columns.items() if len(set(column)) == 1}
    return {_CLIENT: [score.client_id for score in kept], **columns, **alike}


def _record(client_id: str, numbers: Sequence[int]) -> ScoreRecord:
    after, task, examples, correct, lost, gained, compared = numbers
    return ScoreRecord(
        client_id=client_id,
        after_task=after,
        task_index=task,
        num_examples=examples,
        num_correct=correct,
        loss_sum=float("nan"),
        num_lost=lost,
        num_gained=gained,
        num_compared=compared,
    )
