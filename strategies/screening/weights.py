"""A weight is a client's own word: how many examples it says it has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from strategies.protocols import Contribution
from strategies.types import GroupName


def capped(contributions: Sequence[Contribution], limit: float) -> tuple[Contribution, ...]:
    """No weight above ``limit`` times the median of the positive ones, group by group, row by row.

    Of an even number it is the lower median, so that one of two clients cannot raise it.
    """
    weights = dict[GroupName, list[NDArray[np.float64]]]()
    for contribution in contributions:
        for group, weight in contribution.weight.items():
            weights.setdefault(group, []).append(weight)
    limits = {group: limit * _lower_median(found) for group, found in weights.items()}
    return tuple(
        replace(c, weight={g: np.asarray(np.minimum(w, limits[g])) for g, w in c.weight.items()})
        for c in contributions
    )


def _lower_median(found: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Of the positive weights of each row, or of the scalars; 0 where there is none."""
    stacked = np.sort(np.stack(np.broadcast_arrays(*found)), axis=0)
    positive = (stacked > 0).sum(axis=0)
    first = len(found) - positive
    index = np.minimum(first + (np.maximum(positive, 1) - 1) // 2, len(found) - 1)
    return np.asarray(np.take_along_axis(stacked, index[None], axis=0)[0])
