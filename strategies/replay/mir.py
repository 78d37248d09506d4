"""MIR: replay what the coming step would hurt most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from annotated_types import Ge
from numpy.typing import NDArray

from strategies.protocols import ExampleIds, Offer, ReplayMemory
from strategies.replay.reservoir import Reservoir
from strategies.replay.slots import drawn_evenly
from strategies.rng import Rng


@dataclass(frozen=True, slots=True)
class MaximallyInterfered:
    """Of ``candidates`` drawn evenly, those whose loss a step on the new examples raises most.

    Costs one more gradient and two forward passes over the candidates per step.  Keeps what
    ``reservoir`` keeps.
    Source: MIR, Aljundi et al. 2019, arXiv 1908.04742, Alg. 1 (ER-MIR); departs: what the memory
    holds of the task at hand may be a candidate, which the authors' code leaves out.
    """

    candidates: Annotated[int, Ge(1)] = 50

    def admit(self, memory: ReplayMemory, offer: Offer, rng: Rng) -> ReplayMemory:
        return Reservoir().admit(memory, offer, rng)

    def draw(self, memory: ReplayMemory, count: int, rng: Rng) -> ExampleIds:
        return drawn_evenly(memory, count, rng)

    def choose(self, ids: ExampleIds, interference: NDArray[np.float64], count: int) -> ExampleIds:
        # Candidates come in random order and the sort is stable: ties are broken by chance.
        return ids[np.argsort(-interference, kind="stable")[:count]]
