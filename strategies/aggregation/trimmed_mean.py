"""The mean of every number without its largest and smallest values."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from annotated_types import Ge, Lt
from numpy.typing import NDArray

from strategies.aggregation.coordinates import centred
from strategies.protocols import Aggregated, Capabilities, Contribution
from strategies.rng import Rng
from strategies.types import State, Tensors


@dataclass(frozen=True, slots=True)
class TrimmedMean:
    """Of each number's n moves drops ⌈trim · n⌉ at either end and takes the mean of the rest.

    At most (n − 1) // 2 are dropped at either end, so that one is left.  Numbers are entries of
    dA, dB and dense tensors: all clients begin at the same factors, so an entry means the same to
    all of a round.  Of unequal ranks those count who were sent the component, of a head those who
    hold the class.  Every client counts the same: a number of examples is its own word.

    The mean of factors is not the mean of products, as in ``fedavg``, and robust as to factors
    only.  Where clients' data differ, what few of them know is trimmed away.  ``trim`` wants to be
    above the hostile share of all clients: of those who hold a class it may be larger.
    Source: Yin et al. 2018, arXiv:1803.01498, Def. 2; departs: LoRA factors; per row.
    """

    capabilities: ClassVar[Capabilities] = Capabilities(
        exact=False, needs_equal_rank=False, needs_individual_updates=True, keeps_gauge=True
    )
    trim: Annotated[float, Ge(0), Lt(0.5)] = 0.3  # share of the moves dropped at either end

    def aggregate(
        self,
        state: State,
        current: Tensors,
        contributions: Iterable[Contribution],
        scale: float,
        rng: Rng,
    ) -> Aggregated:
        tensors = centred(current, contributions, self._centre)
        return Aggregated(tensors=tensors, state=state, truncation={})

    def _centre(self, ordered: NDArray[np.float64], count: int) -> NDArray[np.float64]:
        cut = min(math.ceil(round(self.trim * count, 9)), (count - 1) // 2)
        return np.asarray(ordered[cut : count - cut].mean(axis=0))
