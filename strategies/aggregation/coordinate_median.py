"""The median of every number."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from strategies.aggregation.coordinates import centred
from strategies.protocols import Aggregated, Capabilities, Contribution
from strategies.rng import Rng
from strategies.types import State, Tensors


@dataclass(frozen=True, slots=True)
class CoordinateMedian:
    """Moves each number by the median of the clients' moves; of an even count, by the middle mean.

    Numbers are entries of dA, dB and dense tensors, clients count as in ``trimmed-mean``, of which
    this is the case that trims most: robust to just under half, and slowest where data differ.
    The median of factors is not the median, nor the mean, of products.
    Source: Yin et al. 2018, arXiv:1803.01498, Def. 1; departs: LoRA factors; per row.
    """

    capabilities: ClassVar[Capabilities] = Capabilities(
        exact=False, needs_equal_rank=False, needs_individual_updates=True, keeps_gauge=True
    )

    def aggregate(
        self,
        state: State,
        current: Tensors,
        contributions: Iterable[Contribution],
        scale: float,
        rng: Rng,
    ) -> Aggregated:
        tensors = centred(current, contributions, _middle)
        return Aggregated(tensors=tensors, state=state, truncation={})


def _middle(ordered: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    return np.asarray((ordered[(count - 1) // 2] + ordered[count // 2]) / 2)
