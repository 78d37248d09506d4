"""Average the factors, and put what that misses into the model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from strategies.aggregation.factored_sum import FactoredSum
from strategies.aggregation.low_rank import Trained, fold, pad
from strategies.aggregation.merged import compact, grown
from strategies.lora import Factors, Matrix, keys_of
from strategies.protocols import Aggregated, Capabilities, Contribution
from strategies.rng import Rng
from strategies.types import State, Tensors


@dataclass(frozen=True, slots=True)
class FedEx:
    """Ā and B̄ as in ``fedavg``; E = Σ pₖ BₖAₖ − B̄Ā, of rank ≤ (K−1)r, is merged into the model.

    Exact: W + scale · (E + B̄Ā) = W + scale · Σ pₖ BₖAₖ.  E becomes a merged pair of the group,
    part of the model but never trained, and is cut only at the rank any matrix of its shape has at
    most, which bounds memory whatever the cohort.
    Source: FedEx-LoRA, arXiv 2410.09432; departs: weighted by examples where its code takes the
    plain mean; E travels in factors beside the published base instead of changing it; pairs become
    one when their ranks exceed min(d_out, d_in).
    """

    capabilities: ClassVar[Capabilities] = Capabilities(
        exact=True,
        needs_equal_rank=True,
        needs_individual_updates=True,
        changes_base=True,
        keeps_gauge=True,
    )

    def aggregate(
        self,
        state: State,
        current: Tensors,
        contributions: Iterable[Contribution],
        scale: float,
        rng: Rng,
    ) -> Aggregated:
        covariances, dense = fold(current, contributions, _start)
        tensors = dict(current) | dense
        for group, covariance in covariances.items():
            averaged, error = covariance.close()
            tensors = grown(tensors, group, compact(error))
            tensors |= zip(keys_of(group), averaged, strict=True)
        return Aggregated(tensors=tensors, state=state, truncation={})


def _start(current: Factors) -> _Covariance:
    return _Covariance(current, FactoredSum.lossless(current))


@dataclass(slots=True)
class _Covariance:
    """Running sums for E = Σ pₖ δBₖ δAₖ − (Σ pₖ δBₖ)(Σ pₖ δAₖ).

    A covariance does not depend on the origin: with deltas in place of factors nothing large
    cancels, and E is zero to the last bit where clients have a factor in common.
    """

    current: Factors
    products: FactoredSum
    a: Matrix = field(init=False)
    b: Matrix = field(init=False)
    total: float = 0.0

    def __post_init__(self) -> None:
        self.a, self.b = np.zeros(self.current.a.shape), np.zeros(self.current.b.shape)

    def add(self, client: Trained) -> None:
        self.products.add(client.delta, client.weight)
        delta = pad(client.delta, self.current.rank)
        self.a += client.weight * delta.a.astype(np.float64)
        self.b += client.weight * delta.b.astype(np.float64)
        self.total += client.weight

    def close(self) -> tuple[Factors, Factors]:
        """The averaged factors and E."""
        mean = Factors(self.a / self.total, self.b / self.total)
        self.products.scale(1 / self.total)
        products = self.products.whole()
        # Beside the products, not added to them: what cancels is told from rounding by their size.
        error = Factors(np.vstack([products.a, mean.a]), np.hstack([products.b, -mean.b]))
        averaged = Factors(
            (self.current.a + mean.a).astype(np.float32),
            (self.current.b + mean.b).astype(np.float32),
        )
        return averaged, error
