"""Mixed ranks by zero-padding, weighted by how much each client's adapter does."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np

from strategies.aggregation.low_rank import pad, server_factors, split
from strategies.aggregation.mean import WeightedMean
from strategies.lora import Factors, Matrix, keys_of, squared_norm
from strategies.protocols import Aggregated, Capabilities, Contribution
from strategies.rng import Rng
from strategies.types import GroupName, State, Tensors


@dataclass(frozen=True, slots=True)
class HetLora:
    """Ā = Σ wₖ pad(Aₖ) and B̄ = Σ wₖ pad(Bₖ), wₖ ∝ Sₖ = ‖BₖAₖ‖ over all groups the client trained.

    Not exact: the factors' covariance is missing as in ``fedavg``, and padding dilutes components
    that few clients have.  Examples weigh dense tensors alone.  With every Sₖ zero nothing moves.
    Source: HetLoRA, arXiv 2401.06432, sparsity-weighted aggregation; departs: a component that no
    client of the round has keeps its value, for zeros in both factors could never learn again.
    Ranks that prune themselves are the rank policy of this name.
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
        sums, dense = dict[GroupName, _PaddedSum](), WeightedMean()
        for contribution in contributions:
            low_rank, rest = split(contribution, current)
            dense.add(replace(contribution, delta=rest))
            held = {group: client.factors for group, client in low_rank.items()}
            strength = _norm(held.values())
            for group, factors in held.items():
                if group not in sums:
                    sums[group] = _PaddedSum(server_factors(current, group))
                sums[group].add(factors, strength)
        tensors = dict(current) | dense.apply_to(current)
        for group, total in sums.items():
            tensors |= zip(keys_of(group), total.mean(), strict=True)
        return Aggregated(tensors=tensors, state=state, truncation={})


def _norm(held: Iterable[Factors]) -> float:
    """S of one client: the Frobenius norm of its products, all groups together."""
    return float(np.sqrt(max(sum(squared_norm(*factors) for factors in held), 0.0)))


@dataclass(slots=True)
class _PaddedSum:
    """Running Σ Sₖ · pad(factors) of one group."""

    current: Factors
    a: Matrix = field(init=False)
    b: Matrix = field(init=False)
    total: float = 0.0
    height: int = 0  # largest rank met

    def __post_init__(self) -> None:
        self.a, self.b = np.zeros(self.current.a.shape), np.zeros(self.current.b.shape)

    def add(self, factors: Factors, strength: float) -> None:
        whole = pad(factors, self.current.rank)
        self.a += strength * whole.a
        self.b += strength * whole.b
        self.total += strength
        self.height = max(self.height, factors.rank)

    def mean(self) -> Factors:
        if self.total == 0:
            return self.current
        a, b = self.current.a.copy(), self.current.b.copy()
        a[: self.height] = self.a[: self.height] / self.total
        b[:, : self.height] = self.b[:, : self.height] / self.total
        return Factors(a, b)
