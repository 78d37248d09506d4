"""Mean of the products, redistributed by SVD: FlexLoRA as published."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Ge

from strategies.aggregation.factored_sum import FactoredSum, ProductMean, cut_to_rank
from strategies.aggregation.low_rank import fold
from strategies.cores import side_by_side
from strategies.lora import Factors, keys_of
from strategies.protocols import Aggregated, Capabilities, Contribution
from strategies.rng import Rng
from strategies.types import State, Tensors


@dataclass(frozen=True, slots=True)
class FlexLora:
    """ΔW = Σ pₖ BₖAₖ of what the clients hold, cut to the server's rank by SVD.

    A client of rank r counts as nothing in all other components, so directions that only clients of
    high rank have fade round by round ("rank collapse"), and what the cut throws away is gone: the
    published method, for comparison with ``exact`` and ``partition``.  ``truncation`` reports it.

    Memory does not grow with the cohort: past ``buffer_rank`` stacked components the stack is cut
    to half by SVD.
    Source: FlexLoRA, arXiv 2402.11505; departs: ΔW is never formed, the SVD is that of the stacked
    factors; singular values go to B, the rows of A keep their initial norm.
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
        cuts = side_by_side(lambda group: _cut(means[group]), means)
        tensors = dict(current) | dense
        for group, (factors, _) in cuts.items():
            tensors |= zip(keys_of(group), factors, strict=True)
        truncation = {group: lost for group, (_, lost) in cuts.items()}
        return Aggregated(tensors=tensors, state=state, truncation=truncation)

    def _start(self, current: Factors) -> ProductMean:
        return ProductMean(current, FactoredSum.bounded(self.buffer_rank, current.rank))


def _cut(mean: ProductMean) -> tuple[Factors, float]:
    held = mean.of_clients()
    return cut_to_rank(held.leading(mean.current.rank), mean.current, held.discarded)
