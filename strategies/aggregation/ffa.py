"""Freeze A, train and average B: exact at half the bytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

from strategies.aggregation.low_rank import factor_mean, refuse
from strategies.protocols import Aggregated, Capabilities, Contribution
from strategies.rng import Rng
from strategies.types import LORA_A, State, Tensors


@dataclass(frozen=True, slots=True)
class FreezeA:
    """B̄ = Σ pₖ Bₖ with one A for all, for ever: Σ pₖ BₖA = B̄A, so the mean is exact.

    A client of rank r has the first r columns of B and keeps the server's others for its share;
    the mean of the products is exact for mixed ranks too.
    Raises: StrategyError if a client sends an A.
    Source: FFA-LoRA, arXiv 2403.12313; departs: ranks may differ, and A is drawn as peft draws it.
    """

    capabilities: ClassVar[Capabilities] = Capabilities(
        exact=True, needs_equal_rank=False, needs_individual_updates=False, keeps_gauge=True
    )

    def trained_factors(self, rounds_before: int) -> tuple[bool, bool]:
        """B alone, in every round."""
        return False, True

    def aggregate(
        self,
        state: State,
        current: Tensors,
        contributions: Iterable[Contribution],
        scale: float,
        rng: Rng,
    ) -> Aggregated:
        tensors = factor_mean(current, _without_a(contributions))
        return Aggregated(tensors=tensors, state=state, truncation={})


def _without_a(contributions: Iterable[Contribution]) -> Iterator[Contribution]:
    for contribution in contributions:
        refuse(contribution, LORA_A, "ffa never moves A; plan LowRank(train_a=False)")
        yield contribution
