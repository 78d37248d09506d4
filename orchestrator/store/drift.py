"""How far every group drifted in every step that trained, as one table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from orchestrator.store.base import RoundRecord


@dataclass(frozen=True, slots=True, eq=False)
class DriftTable:
    """``values (N, G)`` has a row per step that trained, NaN for a group that did not.

    ``tasks`` are the steps', ``groups`` in the order in which they were first trained.
    """

    tasks: Sequence[int]
    groups: Sequence[str]
    values: NDArray[np.float64]

    @classmethod
    def of(cls, steps: Iterable[tuple[int, Mapping[str, float | None]]]) -> DriftTable:
        """From every step's task and drift by group; steps without any are left out."""
        found = [(task, drift) for task, drift in steps if drift]
        groups = list(dict.fromkeys(group for _, drift in found for group in drift))
        rows = [[drift.get(group) for group in groups] for _, drift in found]
        values = np.array(rows, dtype=np.float64).reshape(len(rows), len(groups))
        return cls([task for task, _ in found], groups, values)

    @classmethod
    def of_rounds(cls, rounds: Iterable[RoundRecord]) -> DriftTable:
        """Of steps that were read whole."""
        return cls.of((record.task_index, record.drift) for record in rounds)

    def means(self) -> Mapping[str, float]:
        """By group, over the steps that trained it."""
        return dict(zip(self.groups, known_means(self.values, axis=0).tolist(), strict=True))

    def furthest(self) -> Mapping[str, int]:
        """By group, the task in whose steps it moved most on average; the first of equals."""
        if not self.tasks:
            return {}
        tasks = list(dict.fromkeys(self.tasks))
        of = np.array(self.tasks)
        by_task = np.array([known_means(self.values[of == task], axis=0) for task in tasks])
        best = np.where(np.isnan(by_task), -np.inf, by_task).argmax(axis=0)
        return {group: tasks[i] for group, i in zip(self.groups, best, strict=True)}


def known_means(values: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    """Means along an axis over what is not NaN, NaN of nothing; in silence, unlike ``nanmean``."""
    known = ~np.isnan(values)
    counts = known.sum(axis=axis)
    means = np.full(counts.shape, np.nan)
    np.divide(np.where(known, values, 0.0).sum(axis=axis), counts, out=means, where=counts > 0)
    return means
