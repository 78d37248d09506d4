"""Mean of the products B·A: what the clients' models average to, not their factors."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Ge

from strategies.aggregation.factored_sum import FactoredSum, ProductMean
from strategies.aggregation.feedback import Offer, publish
from strategies.aggregation.low_rank import fold
from strategies.lora import Factors
from strategies.protocols import Aggregated, Capabilities, Contribution
from strategies.rng import Rng
from strategies.types import State, Tensors


@dataclass(frozen=True, slots=True)
class Exact:
    """ΔW ← ΔW + E + Σ pₖ (BₖAₖ − what client k was sent), cut to the server's rank by SVD.

    pₖ is the client's share of the weight of those who trained the group.  A client of rank r was
    sent the first r components; components it never saw keep their value for its share.  With equal
    ranks this is the plain mean of the products.  Accumulates in float64, returns float32.

    E is what earlier cuts threw away and the server kept (see ``feedback``): offered again each
    round, it comes out once it has grown to matter.

    Memory does not grow with the cohort: past ``buffer_rank`` stacked components the stack is cut
    to half by SVD.  What that and the final cut leave out is measured and returned as
    ``truncation``: its norm over the norm of the whole, the exact error of one cut and an upper
    bound (triangle inequality) on that of several.

    A group no client trained is returned unchanged; so is the product where all deltas are zero.
    Source: the round's target of FlexLoRA (arXiv 2402.11505) by the stacked-QR route; departs:
    mixed ranks keep what a truncated client never saw, what is cut is offered again, and A keeps
    its initial row norm.
    """

    capabilities: ClassVar[Capabilities] = Capabilities(
        exact=True, needs_equal_rank=False, needs_individual_updates=True
    )
    buffer_rank: Annotated[int, Ge(2)] = 256  # stacked components per group

    def aggregate(
        self,
        state: State,
        current: Tensors,
        contributions: Iterable[Contribution],
        scale: float,
        rng: Rng,
    ) -> Aggregated:
        means, dense = fold(current, contributions, self._start)
        offers = {group: Offer(mean.of_models(), mean.current) for group, mean in means.items()}
        tensors, state, truncation = publish(state, offers)
        return Aggregated(
            tensors=dict(current) | dense | tensors, state=state, truncation=truncation
        )

    def _start(self, current: Factors) -> ProductMean:
        return ProductMean(current, FactoredSum.bounded(self.buffer_rank, current.rank))
