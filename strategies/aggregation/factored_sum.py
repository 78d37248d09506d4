"""Sums and means of products B·A that never leave factored form; shared by the aggregators."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from strategies.aggregation.low_rank import Trained
from strategies.lora import Decomposition, Factors, Matrix, decompose, leading, to_factors


@dataclass(slots=True)
class FactoredSum:
    """Running Σ weight · B A of one group, stacked, in float64.

    Past ``limit`` stacked components the stack is cut to its best ``cut`` by SVD, so memory does
    not grow with the number of terms.  ``discarded`` adds up the norms cut away.
    """

    limit: int
    cut: int
    rows: list[Matrix] = field(default_factory=list)  # of A, each (r, d_in)
    columns: list[Matrix] = field(default_factory=list)  # of weight · B, each (d_out, r)
    height: int = 0
    discarded: float = 0.0

    @classmethod
    def bounded(cls, buffer_rank: int, rank: int) -> FactoredSum:
        """At most ``buffer_rank`` components, of which a cut leaves half but at least ``rank``."""
        return cls(buffer_rank, max(buffer_rank // 2, rank))

    @classmethod
    def lossless(cls, current: Factors) -> FactoredSum:
        """Cut only to the rank that every matrix of this shape has at most."""
        full = min(current.b.shape[0], current.a.shape[1])
        return cls(2 * full, full)

    def add(self, factors: Factors, weight: float = 1.0) -> None:
        """Add weight · b @ a."""
        if factors.rank == 0:
            return
        self.rows.append(factors.a.astype(np.float64, copy=False))
        self.columns.append(weight * factors.b.astype(np.float64, copy=False))
        self.height += factors.rank
        if self.height > self.limit:
            self._compress()

    def scale(self, by: float) -> None:
        """Multiply the sum, and the norm of what it lost, by a number."""
        self.columns = [by * b for b in self.columns]
        self.discarded *= by

    def whole(self) -> Factors:
        """The sum as one pair of factors."""
        return Factors(np.vstack(self.rows), np.hstack(self.columns))

    def decomposed(self) -> Decomposition:
        """The SVD of the sum."""
        return decompose(*self.whole())

    def leading(self, count: int) -> Decomposition:
        """The ``count`` largest components of the sum's SVD at least."""
        return leading(*self.whole(), count)

    def _compress(self) -> None:
        parts = self.decomposed()
        self.discarded += float(np.linalg.norm(parts.s[self.cut :]))
        self.rows = [parts.v[: self.cut].copy()]  # a view would keep what was cut
        self.columns = [parts.u[:, : self.cut] * parts.s[: self.cut]]
        self.height = self.rows[0].shape[0]


@dataclass(slots=True)
class ProductMean:
    """Running Σ weight · Bₖ Aₖ of one group over clients of any rank."""

    current: Factors
    sum: FactoredSum
    seen: Matrix = field(init=False)  # (r,) weight of the clients that were sent component i
    total: float = 0.0

    def __post_init__(self) -> None:
        self.seen = np.zeros(self.current.rank)

    def add(self, client: Trained) -> None:
        self.sum.add(client.factors, client.weight)
        self.seen[: client.rank] += client.weight
        self.total += client.weight

    def of_clients(self) -> FactoredSum:
        """The mean of what the clients hold; components they were not sent count as nothing."""
        self.sum.scale(1 / self.total)
        return self.sum

    def of_models(self) -> FactoredSum:
        """The mean of the clients' models: a component a client was not sent kept its value."""
        unseen = self.total - self.seen
        kept = unseen > 0
        self.sum.add(Factors(self.current.a[kept], self.current.b[:, kept] * unseen[kept]))
        return self.of_clients()


def cut_to_rank(
    parts: Decomposition, current: Factors, discarded: float = 0.0
) -> tuple[Factors, float]:
    """The best approximation at the server's rank, and its error relative to the whole.

    ``discarded``, the norm of what was lost before, is added to the error: exact for one cut, an
    upper bound by the triangle inequality for several.  Missing components are filled up with some
    that carry nothing: the server's last rows of A, B zero.  Of nothing at all A stays as it is.
    """
    whole, rank = parts.norm_from(0), current.rank
    if whole == 0:
        return Factors(current.a, np.zeros_like(current.b)), 0.0
    lost = parts.norm_from(rank) + discarded
    factors = to_factors(parts, rank)
    missing = rank - factors.rank
    b = np.zeros((factors.b.shape[0], missing), dtype=np.float32)
    a = current.a[rank - missing :]
    return Factors(np.vstack([factors.a, a]), np.hstack([factors.b, b])), lost / whole
