"""What has been forgotten most comes back most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from annotated_types import Ge, Gt, Le
from numpy.typing import NDArray

from strategies.protocols import ExampleIds, Offer, ReplayMemory
from strategies.replay.balanced import Balanced
from strategies.rng import Rng


@dataclass(frozen=True, slots=True)
class Forgetting:
    """p(i) = (1 − floor)·fᵢ^sharpness / Σ f^sharpness + floor/n, fᵢ the rise of i's loss.

    fᵢ = latest − lowest loss of example i under the models the client received; one not measured
    yet counts as much as the most forgotten.  The loss of what is drawn is weighted by (n·p)^−β,
    at most ``1/floor^β``: with β = 1 a single draw's expected loss is the memory's mean, with β = 0
    all the emphasis stays.  The examples of a batch are distinct, so the more of the memory a batch
    takes, the nearer its examples come to being drawn alike, weighted as if they were not.  Keeps
    what ``balanced`` keeps.
    Source: ours; prioritised replay of Schaul et al. 2016, arXiv 1511.05952, eq. 1 and §3.4, with
    forgetting in the place of the temporal-difference error; departs: draws without replacement,
    weights not divided by their largest.
    """

    sharpness: Annotated[float, Ge(0)] = 1.0
    floor: Annotated[float, Gt(0), Le(1)] = 0.2
    beta: Annotated[float, Ge(0), Le(1)] = 0.5

    def admit(self, memory: ReplayMemory, offer: Offer, rng: Rng) -> ReplayMemory:
        return Balanced().admit(memory, offer, rng)

    def draw(self, memory: ReplayMemory, count: int, rng: Rng) -> ExampleIds:
        count = min(count, len(memory.ids))
        if not count:
            return memory.ids[:0]
        return rng.choice(memory.ids, size=count, replace=False, p=self.probabilities(memory))

    def weights(self, memory: ReplayMemory, ids: ExampleIds) -> NDArray[np.float64]:
        place = {example: index for index, example in enumerate(memory.ids.tolist())}
        drawn = self.probabilities(memory)[[place[example] for example in ids.tolist()]]
        weights: NDArray[np.float64] = (len(memory.ids) * drawn) ** -self.beta
        return weights

    def probabilities(self, memory: ReplayMemory) -> NDArray[np.float64]:
        """Of each example of the memory to be drawn first, (n,)."""
        rises = memory.rises()
        worst = np.nanmax(rises) if np.isfinite(rises).any() else 1.0
        emphasis = np.where(np.isfinite(rises), np.maximum(rises, 0.0), worst) ** self.sharpness
        count, total = len(rises), emphasis.sum()
        if not total > 0:
            return np.full(count, 1 / count)
        mixed = (1 - self.floor) * emphasis / total + self.floor / count
        probabilities: NDArray[np.float64] = mixed / mixed.sum()
        return probabilities
