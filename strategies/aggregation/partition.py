"""Each slice of ranks averaged over the clients that have it, so that high ranks do not fade."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

import numpy as np
from annotated_types import Ge

from strategies.aggregation.factored_sum import FactoredSum
from strategies.aggregation.feedback import Offer, publish
from strategies.aggregation.low_rank import Trained, fold
from strategies.lora import Factors, Matrix
from strategies.protocols import Aggregated, Capabilities, Contribution
from strategies.rng import Rng
from strategies.types import State, Tensors

_MIN_STACK = 8  # clients a component's stack holds at least before it is cut


@dataclass(frozen=True, slots=True)
class Partition:
    """ΔW = E + Σ_h Σₖ p_{k,h} Bₖ[:, h] Aₖ[h], p_{k,h} the share among clients that have slice h.

    Slices end at the ranks of the round's clients; components beyond the largest keep their value.
    ΔW is cut to the server's rank by SVD; E is what earlier cuts threw away (see ``feedback``).

    Memory does not grow with the cohort: about ``buffer_rank`` components are stacked before they
    are cut by SVD, what is lost is in ``truncation``.  The weight within a slice is one number, so
    slices are held one component wide: a rank that turns up late could split any wider one.
    Source: raFLoRA, arXiv 2602.13486; departs: one pass in factored form, what is cut is offered
    again, components nobody in the round has are kept.
    """

    capabilities: ClassVar[Capabilities] = Capabilities(
        exact=False, needs_equal_rank=False, needs_individual_updates=True
    )
    buffer_rank: Annotated[int, Ge(2)] = 512  # stacked components per group

    def aggregate(
        self,
        state: State,
        current: Tensors,
        contributions: Iterable[Contribution],
        scale: float,
        rng: Rng,
    ) -> Aggregated:
        slices, dense = fold(current, contributions, self._start)
        offers = {group: Offer(found.mean(), found.current) for group, found in slices.items()}
        tensors, state, truncation = publish(state, offers)
        return Aggregated(
            tensors=dict(current) | dense | tensors, state=state, truncation=truncation
        )

    def _start(self, current: Factors) -> _Slices:
        return _Slices(current, max(_MIN_STACK, self.buffer_rank // current.rank))


@dataclass(slots=True)
class _Slices:
    """Running Σₖ weight · Bₖ[:, i] Aₖ[i] and Σₖ weight for every component i of one group."""

    current: Factors
    limit: int  # stacked clients per component
    components: list[FactoredSum] = field(init=False)
    weights: Matrix = field(init=False)

    def __post_init__(self) -> None:
        rank = self.current.rank
        self.components = [FactoredSum.bounded(self.limit, 1) for _ in range(rank)]
        self.weights = np.zeros(rank)

    def add(self, client: Trained) -> None:
        a, b = client.factors
        for i in range(client.rank):
            row = a[i : i + 1].copy()  # a view would keep the client's whole A
            self.components[i].add(Factors(row, b[:, i : i + 1]), client.weight)
        self.weights[: client.rank] += client.weight

    def mean(self) -> FactoredSum:
        """All slices together, each over its own clients' weight."""
        rank = self.current.rank
        total = FactoredSum.bounded(2 * self.limit * rank, self.limit * rank)
        absent = self.weights == 0
        total.add(Factors(self.current.a[absent], self.current.b[:, absent]))
        for component, weight in zip(self.components, self.weights, strict=True):
            if weight > 0:
                component.scale(1 / float(weight))
                total.add(component.whole())
                total.discarded += component.discarded
        return total
