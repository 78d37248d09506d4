"""Fewer points for long runs, so that a figure stays small whatever the run's length."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from orchestrator.store.drift import known_means

Point = tuple[float, float]
MOST_POINTS: Final = 240  # of a line; more would fall on the same pixels
MOST_BARS: Final = 80


def thinned(points: Sequence[Point]) -> Sequence[Point]:
    """At most ``MOST_POINTS`` of them, in order: the lowest and the highest of equal stretches.

    The first and the last are always among them, so peaks and ends stay where they were.
    """
    if len(points) <= MOST_POINTS:
        return points
    stretch = math.ceil(len(points) / (MOST_POINTS // 2 - 1))
    kept = {0, len(points) - 1}
    for start in range(0, len(points), stretch):
        places = range(start, min(start + stretch, len(points)))
        kept.add(min(places, key=lambda i: points[i][1]))
        kept.add(max(places, key=lambda i: points[i][1]))
    return [points[i] for i in sorted(kept)]


def bin_size(count: int, most: int) -> int:
    """How many neighbours share a bin so that there are at most ``most`` bins."""
    return max(1, math.ceil(count / most))


def binned(values: Sequence[float | None], size: int) -> list[float | None]:
    """Means of ``size`` neighbours each, over those that are not None; None where all are."""
    return [_mean(values[i : i + size]) for i in range(0, len(values), size)]


def rows_binned(values: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """The same of every row, (rows, columns): there nothing is NaN."""
    if size == 1:
        return values
    height, width = values.shape
    padded = np.full((height, math.ceil(width / size) * size), np.nan)
    padded[:, :width] = values
    return known_means(padded.reshape(height, -1, size), axis=2)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
