"""Mean of the products B·A: what the clients' models average to, not their factors."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Annotated, ClassVar

import numpy as np
from annotated_types import Ge

from strategies.aggregation.mean import WeightedMean
from strategies.lora import Factors, Matrix, decompose, factors_of, keys_of, to_factors
from strategies.protocols import Aggregated, Contribution
from strategies.types import LORA_A, LORA_B, GroupName, State, Tensors


@dataclass(frozen=True, slots=True)
class Exact:
    """ΔW ← ΔW + Σ pₖ (BₖAₖ − what client k was sent), cut back to the server's rank by SVD.

    pₖ is the client's share of the weight of those who trained the group.  A client of rank r was
    sent the first r components; components it never saw keep their value for its share.  With equal
    ranks this is the plain mean of the products.  Accumulates in float64, returns float32.

    Memory does not grow with the cohort: past ``buffer_rank`` stacked components the stack is cut
    to half by SVD.  What that and the final cut throw away is measured and returned as
    ``truncation``: the norm of the discarded part over the norm of the whole, the exact error of
    one cut and an upper bound (triangle inequality) on that of several.

    A group no client trained is returned unchanged, and so is one whose sum is zero.
    Source: the round's target of FlexLoRA (arXiv 2402.11505) by the stacked-QR route; departs:
    mixed ranks keep what a truncated client never saw, and A keeps its initial row norm.
    """

    needs_equal_rank: ClassVar[bool] = False
    buffer_rank: Annotated[int, Ge(2)] = 256  # stacked components per group

    def aggregate(
        self, state: State, current: Tensors, contributions: Iterable[Contribution], scale: float
    ) -> Aggregated:
        dense, stacks = WeightedMean(), dict[GroupName, _Stack]()
        for contribution in contributions:
            low_rank, rest = _split(contribution)
            dense.add(rest)
            for group in low_rank:
                if group not in stacks:
                    stacks[group] = _Stack(_require(current, group), self.buffer_rank)
                stacks[group].add(contribution, group)
        tensors, truncation = dict(current) | dense.apply_to(current), dict[GroupName, float]()
        for group, stack in stacks.items():
            factors, truncation[group] = stack.close()
            tensors |= zip(keys_of(group), factors, strict=True)
        return Aggregated(tensors=tensors, state=state, truncation=truncation)


def _split(contribution: Contribution) -> tuple[list[GroupName], Contribution]:
    """The groups trained with LoRA, in a fixed order, and the contribution's dense remainder."""
    dense = {k: v for k, v in contribution.delta.items() if k.part not in (LORA_A, LORA_B)}
    low_rank = sorted({key.group for key in contribution.delta if key not in dense})
    return low_rank, replace(contribution, delta=dense)


def _require(current: Tensors, group: GroupName) -> Factors:
    factors = factors_of(current, group)
    if factors is None:
        raise KeyError(f"group {group} was trained with LoRA but the state holds no factors for it")
    return factors


@dataclass(slots=True)
class _Stack:
    """Running factored sum of weight · Bₖ Aₖ for one group."""

    current: Factors
    buffer_rank: int
    rows: list[Matrix] = field(default_factory=list)  # of A, each (r, d_in)
    columns: list[Matrix] = field(default_factory=list)  # of weight · B, each (d_out, r)
    height: int = 0
    total: float = 0.0
    discarded: float = 0.0  # Σ of the norms cut away on the way
    seen: Matrix = field(default_factory=lambda: np.zeros(0))  # weight that was sent component i

    def add(self, contribution: Contribution, group: GroupName) -> None:
        key_a, key_b = keys_of(group)
        delta = contribution.delta
        rank = delta[key_a].shape[0] if key_a in delta else delta[key_b].shape[1]
        sent = self.current.prefix(rank)
        weight = float(contribution.weight[group])
        self._push(
            np.add(sent.a, delta.get(key_a, 0), dtype=np.float64),
            weight * np.add(sent.b, delta.get(key_b, 0), dtype=np.float64),
        )
        if not self.seen.size:
            self.seen = np.zeros(self.current.rank)
        self.seen[:rank] += weight
        self.total += weight

    def _push(self, a: Matrix, b: Matrix) -> None:
        self.rows.append(a)
        self.columns.append(b)
        self.height += a.shape[0]
        if self.height > self.buffer_rank:
            self._compress(max(self.buffer_rank // 2, self.current.rank))

    def _compress(self, rank: int) -> None:
        parts = decompose(np.vstack(self.rows), np.hstack(self.columns))
        self.discarded += float(np.linalg.norm(parts.s[rank:]))
        self.rows, self.columns = [parts.v[:rank]], [parts.u[:, :rank] * parts.s[:rank]]
        self.height = self.rows[0].shape[0]

    def close(self) -> tuple[Factors, float]:
        kept = self.total - self.seen  # weight of clients that were never sent component i
        if np.any(kept > 0):
            self._push(
                self.current.a[kept > 0].astype(np.float64),
                (self.current.b * kept)[:, kept > 0].astype(np.float64),
            )
        rank = self.current.rank
        parts = decompose(np.vstack(self.rows), np.hstack(self.columns))
        whole = float(np.linalg.norm(parts.s))
        if self.total == 0 or whole == 0:
            return self.current, 0.0
        lost = float(np.linalg.norm(parts.s[rank:])) + self.discarded
        factors = to_factors(parts._replace(s=parts.s / self.total), rank)
        return _pad(factors, self.current), lost / whole


def _pad(factors: Factors, current: Factors) -> Factors:
    """Fill up to the server's rank with components that carry nothing: old rows of A, B zero."""
    missing = current.rank - factors.rank
    if missing == 0:
        return factors
    b = np.zeros((factors.b.shape[0], missing), dtype=np.float32)
    return Factors(np.vstack([factors.a, current.a[-missing:]]), np.hstack([factors.b, b]))
