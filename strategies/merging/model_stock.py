"""The less the clients of a round agree, the shorter the step."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from strategies.aggregation.factored_sum import FactoredSum
from strategies.aggregation.low_rank import Trained, server_factors, split
from strategies.lora import Factors, Matrix, squared_norm
from strategies.merging.between import between
from strategies.protocols import Contribution, Merged, MergeView, Moves
from strategies.types import GroupName, ParamKey, State, Tensors


@dataclass(frozen=True, slots=True)
class ModelStock:
    """After every round θ ← θ + t · (θ merged − θ) per group, t = N cos / ((N − 1) cos + 1).

    cos is the mean cosine between the moves of the N clients that trained the group, as far as sums
    tell: (‖Σδ‖² − Σ‖δ‖²) / ((N − 1) Σ‖δ‖²), exact for moves of one length.  A move is that of
    the product B·A, or of dense tensors.  t lies in [0, 1]: a group on whose moves the clients do
    not agree at all stands still, one that a single client trained moves as it says.  Groups whose
    rows count apart (the head) stay as merged: there clients differ because their classes do.
    Source: Model Stock, arXiv 2403.19522, eq. 4, by the identity on sums; departs: the mean move is
    the aggregator's, weighted by examples; the step of low-rank groups is cut to the server's rank.
    """

    changes_base: ClassVar[bool] = False

    def tally(self, current: Tensors) -> MoveTally:
        return MoveTally(current)

    def after_round(
        self, view: MergeView, before: Tensors, tensors: Tensors, state: State
    ) -> Merged:
        weights = {group: step_length(moves) for group, moves in view.moves.items()}
        return between(before, tensors, weights, state)

    def task_end(self, view: MergeView, tensors: Tensors, state: State) -> Merged:
        return Merged(tensors=tensors, state=state)


def step_length(moves: Moves) -> float:
    """The factor t in [0, 1]; 1 where nobody disagrees with anybody."""
    if moves.count < 2 or moves.sum_of == 0:
        return 1.0
    others = moves.count - 1
    cosine = (moves.of_sum - moves.sum_of) / (others * moves.sum_of)
    return float(np.clip(moves.count * cosine / (others * cosine + 1), 0, 1)) if cosine > 0 else 0.0


@dataclass(slots=True)
class _Total:
    """Σδ of one group, as a product and as dense tensors, and Σ‖δ‖²."""

    products: FactoredSum | None = None
    dense: dict[ParamKey, Matrix] = field(default_factory=dict)
    sum_of: float = 0.0
    count: int = 0

    def moves(self) -> Moves:
        of_sum = sum(float(np.square(total).sum()) for total in self.dense.values())
        if self.products is not None:
            of_sum += squared_norm(*self.products.whole())
        return Moves(count=self.count, of_sum=of_sum, sum_of=self.sum_of)


@dataclass(slots=True)
class MoveTally:
    """Sums over the contributions of one round; memory does not grow with the cohort."""

    current: Tensors
    totals: dict[GroupName, _Total] = field(default_factory=dict)

    def add(self, contribution: Contribution) -> None:
        low_rank, dense = split(contribution, self.current)
        alike = {group for group, weight in contribution.weight.items() if weight.ndim == 0}
        for group, trained in low_rank.items():
            self._add_product(group, trained)
        for group in {key.group for key in dense} & alike:
            if contribution.weight[group] > 0:
                self._add_dense(group, {k: v for k, v in dense.items() if k.group == group})

    def moves(self) -> dict[GroupName, Moves]:
        return {group: total.moves() for group, total in self.totals.items()}

    def _add_product(self, group: GroupName, trained: Trained) -> None:
        """δ = (B + dB) dA + dB A: two small terms, where the difference of two products cancels."""
        total = self.totals.setdefault(group, _Total())
        a = np.vstack([trained.delta.a, trained.sent.a]).astype(np.float64)
        b = np.hstack([trained.factors.b, trained.delta.b]).astype(np.float64)
        if total.products is None:
            total.products = FactoredSum.lossless(server_factors(self.current, group))
        total.products.add(Factors(a, b))
        total.sum_of += squared_norm(a, b)
        total.count += 1

    def _add_dense(self, group: GroupName, delta: Tensors) -> None:
        total = self.totals.setdefault(group, _Total())
        for key, value in delta.items():
            moved = value.astype(np.float64)
            total.dense[key] = total.dense.get(key, np.zeros_like(moved)) + moved
            total.sum_of += float(np.square(moved).sum())
        total.count += 1
