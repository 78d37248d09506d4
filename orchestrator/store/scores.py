"""The scores of a run's accuracy matrix as columns: there are tens of thousands of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from orchestrator.store.base import RoundRecord, ScoreRecord

NUMBERS: Final = (
    "step_index", "after_task", "task_index", "num_examples", "num_correct", "num_lost",
    "num_gained", "num_compared",
)  # fmt: skip
_COUNTS: Final = NUMBERS[3:]


@dataclass(frozen=True, slots=True, eq=False)
class ScoreTable:
    """``numbers (N, 8)`` has a row per score and the columns ``NUMBERS``; ``clients`` their ids."""

    clients: Sequence[str]
    numbers: NDArray[np.int64]

    @classmethod
    def of(cls, rows: Iterable[tuple[str, tuple[int, ...]]]) -> ScoreTable:
        """From client ids and numbers."""
        found = list(rows)
        numbers = np.array([row for _, row in found], dtype=np.int64)
        return cls([client for client, _ in found], numbers.reshape(-1, len(NUMBERS)))

    @classmethod
    def of_rounds(cls, rounds: Iterable[RoundRecord]) -> ScoreTable:
        """Of steps that were read whole; mid-task scores are not of the matrix."""
        return cls.of(
            (
                score.client_id,
                (record.step_index, *(getattr(score, name) for name in NUMBERS[1:])),
            )
            for record in rounds
            for score in record.scores
            if not score.mid_task
        )

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
        cells, place = np.unique(self.numbers[:, :3], axis=0, return_inverse=True)
        sums = np.zeros((len(cells), len(_COUNTS)), dtype=np.int64)
        np.add.at(sums, place.reshape(-1), self.numbers[:, 3:])
        found = defaultdict[int, list[ScoreRecord]](list)
        for (step, *cell), counts in zip(cells.tolist(), sums.tolist(), strict=True):
            found[step].append(_record("", [*cell, *counts]))
        return {step: tuple(scores) for step, scores in found.items()}

    def matrices(self, num_rows: int, num_tasks: int) -> dict[str, NDArray[np.float64]]:
        """By client id, what share was right after each stage on each task, (num_rows, num_tasks).

        NaN where nothing was measured.
        """
        names, who = np.unique(np.array(self.clients, dtype=object), return_inverse=True)
        where = (who.reshape(-1), self.column("after_task") + 1, self.column("task_index"))
        correct, examples = np.zeros((2, len(names), num_rows, num_tasks))
        np.add.at(correct, where, self.column("num_correct"))
        np.add.at(examples, where, self.column("num_examples"))
        values = np.divide(correct, examples, out=np.full_like(correct, np.nan), where=examples > 0)
        return dict(zip(names.tolist(), values, strict=True))


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
