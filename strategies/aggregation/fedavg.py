"""Average A and B apart: what stock federated averaging does to LoRA, kept for comparison."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from strategies.aggregation.low_rank import factor_mean
from strategies.protocols import Aggregated, Capabilities, Contribution
from strategies.rng import Rng
from strategies.types import State, Tensors


@dataclass(frozen=True, slots=True)
class FedAvg:
    """Ā = Σ pₖ Aₖ and B̄ = Σ pₖ Bₖ; the model used is B̄Ā, not Σ pₖ BₖAₖ.

    The difference is Σ pₖ (Bₖ − B̄)(Aₖ − Ā), zero only where clients agree or share a factor.
    Source: FedIT, arXiv 2305.05644; McMahan et al. 2017, arXiv 1602.05629, Alg. 1.
    """

    capabilities: ClassVar[Capabilities] = Capabilities(
        exact=False, needs_equal_rank=True, needs_individual_updates=False, keeps_gauge=True
    )

    def aggregate(
        self,
        state: State,
        current: Tensors,
        contributions: Iterable[Contribution],
        scale: float,
        rng: Rng,
    ) -> Aggregated:
        return Aggregated(tensors=factor_mean(current, contributions), state=state, truncation={})
