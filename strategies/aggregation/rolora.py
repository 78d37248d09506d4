"""Train B and A in turns: every round has one factor in common, so every mean is exact."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from strategies.aggregation.low_rank import factor_mean
from strategies.protocols import Aggregated, Capabilities, Contribution
from strategies.rng import Rng
from strategies.types import State, Tensors


@dataclass(frozen=True, slots=True)
class Alternate:
    """Even rounds: Σ pₖ BₖA = B̄A.  Odd rounds: Σ pₖ BAₖ = BĀ.  Rounds count over the whole run.

    B first because A has no gradient while B is zero.  Mixed ranks as in ``ffa``: components a
    client lacks keep the server's value for its share.
    Source: RoLoRA, arXiv 2409.02346; departs: ranks may differ.
    """

    capabilities: ClassVar[Capabilities] = Capabilities(
        exact=True, needs_equal_rank=False, needs_individual_updates=False, keeps_gauge=True
    )

    def trained_factors(self, rounds_before: int) -> tuple[bool, bool]:
        """B in rounds 0, 2, …, A in between."""
        trains_a = rounds_before % 2 == 1
        return trains_a, not trains_a

    def aggregate(
        self,
        state: State,
        current: Tensors,
        contributions: Iterable[Contribution],
        scale: float,
        rng: Rng,
    ) -> Aggregated:
        return Aggregated(tensors=factor_mean(current, contributions), state=state, truncation={})
