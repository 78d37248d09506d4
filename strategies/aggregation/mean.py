"""Weighted mean of deltas, tensor by tensor, shared by every aggregator."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from strategies.protocols import Contribution
from strategies.types import Array, ParamKey, Tensors


@dataclass(slots=True)
class WeightedMean:
    """Running Σ weight · delta and Σ weight per tensor.

    Weights are scalars or one per row; a row nobody trained stays as it is, however many trained
    the other rows.  That is how a head grows: a class moves only by those who hold examples of it.
    """

    sums: dict[ParamKey, NDArray[np.float64]] = field(default_factory=dict)
    weights: dict[ParamKey, NDArray[np.float64]] = field(default_factory=dict)

    def add(self, contribution: Contribution) -> None:
        """Fold in one client's tensors."""
        for key, delta in contribution.delta.items():
            weight = _per_row(contribution.weight[key.group], delta)
            if key not in self.sums:
                self.sums[key] = np.zeros(delta.shape)
                self.weights[key] = np.zeros_like(weight)
            self.sums[key] += weight * delta
            self.weights[key] += weight

    def apply_to(self, current: Tensors) -> dict[ParamKey, Array]:
        """What was trained: ``current`` plus the mean, in float32; absent counts as zero."""
        moved = dict[ParamKey, Array]()
        for key, total in self.sums.items():
            weight = self.weights[key]
            mean = np.divide(total, weight, out=np.zeros_like(total), where=weight > 0)
            moved[key] = np.add(current.get(key, 0), mean, dtype=np.float64).astype(np.float32)
        return moved


def _per_row(weight: NDArray[np.float64], delta: Array) -> NDArray[np.float64]:
    """Shape the weight so that it broadcasts along the rows of ``delta``."""
    rows = (-1,) if weight.ndim else (1,)
    return weight.reshape(rows + (1,) * (delta.ndim - 1))
