"""Stack the clients' adapters into the model and start every round from a fresh one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from strategies.aggregation.factored_sum import FactoredSum, ProductMean
from strategies.aggregation.low_rank import fold
from strategies.aggregation.merged import compact, grown
from strategies.lora import Factors, initial_factors, keys_of
from strategies.protocols import Aggregated, Capabilities, Contribution
from strategies.rng import Rng
from strategies.types import State, Tensors


@dataclass(frozen=True, slots=True)
class Flora:
    """W ← W + scale · [p₁B₁ … p_KB_K] [A₁; …; A_K]; then A is drawn afresh and B is zero.

    The weights are in one of the two stacks only: in both they would count squared.  The stack
    becomes a merged pair of the group, which is part of the model but never trained; a client that
    comes late is sent all pairs.  Nothing is lost: a stack is cut only at the rank any matrix of
    its shape has at most, which also bounds memory whatever the cohort.

    A group no client trained, or all of whose products are zero, gets no pair and keeps its A.
    Source: FLoRA, arXiv 2409.05976; departs: the base itself stays as published and merged pairs
    travel beside it; pairs become one when their ranks exceed min(d_out, d_in); a B that is not
    zero at the start of a round is merged as well.
    """

    capabilities: ClassVar[Capabilities] = Capabilities(
        exact=True, needs_equal_rank=False, needs_individual_updates=True, changes_base=True
    )

    def aggregate(
        self,
        state: State,
        current: Tensors,
        contributions: Iterable[Contribution],
        scale: float,
        rng: Rng,
    ) -> Aggregated:
        means, dense = fold(current, contributions, _start)
        tensors = dict(current) | dense
        for group in sorted(means):  # so that fresh factors do not depend on who came first
            mean = means[group]
            stack = compact(mean.of_models().whole())
            tensors = grown(tensors, group, stack)
            fresh = initial_factors(_shape(mean.current), mean.current.rank, rng)
            a = fresh.a if stack.rank else mean.current.a
            tensors |= zip(keys_of(group), (a, fresh.b), strict=True)
        return Aggregated(tensors=tensors, state=state, truncation={})


def _start(current: Factors) -> ProductMean:
    return ProductMean(current, FactoredSum.lossless(current))


def _shape(factors: Factors) -> tuple[int, int]:
    return factors.b.shape[0], factors.a.shape[1]
