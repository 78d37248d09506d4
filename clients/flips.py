"""Which examples a model got right, kept to be compared with the answers of a later one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from strategies.protocols import ExampleIds


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Answered:
    """``ids`` (n,) of distinct test examples, and ``right`` (n,) whether the model got each right.

    It stays with the client: only sums over it are reported.
    """

    ids: ExampleIds
    right: NDArray[np.bool_]


class Flips(NamedTuple):
    """Of ``compared`` examples, how many went from right to wrong, and from wrong to right."""

    lost: int
    gained: int
    compared: int


def flips(before: Answered, now: Answered) -> Flips:
    """Over the examples both models answered.

    gained − lost is by how many more of them are right now.
    Source: MUSCLE, arXiv 2407.09435, negative and positive flips.
    """
    _, here, there = np.intersect1d(now.ids, before.ids, assume_unique=True, return_indices=True)
    is_right, was_right = now.right[here], before.right[there]
    return Flips(
        lost=int((was_right & ~is_right).sum()),
        gained=int((~was_right & is_right).sum()),
        compared=len(here),
    )
