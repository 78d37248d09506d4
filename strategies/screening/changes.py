"""How each client changed the model, and how far changes are apart; no ΔW is ever formed.

Low-rank groups: a client was sent the first r components B (d_out, r), A (r, d_in) and answers with
dB, dA.  What counts is the change of the product, D = scale · ((B + dB)(A + dA) − B A), for factors
can differ where models do not.  Deltas of lower rank are padded with zeros: components a client was
not sent did not move.  All else is arithmetic of (d, 2r) matrices, in float64.

Dense groups: the moves themselves, all parts of a group as one vector.  A row the client has no
weight in did not move, whatever it sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from strategies.aggregation.low_rank import pad, server_factors, split
from strategies.errors import StrategyError
from strategies.lora import Factors, Matrix, squared_norm
from strategies.protocols import Contribution
from strategies.types import Array, GroupName, Tensors


class LowRankChange(NamedTuple):
    """D = (B + dB)(A + dA) − B A, all of the server's rank; ``scale`` multiplies it."""

    sent: Factors
    delta: Factors
    scale: float

    def squared(self, share: float = 1.0) -> float:
        """‖D‖² with both deltas ``share`` times as large, from Gram matrices of (d, 2r) factors.

        D = (B + dB) dA + dB A, which loses no digits where D is small beside B A.
        """
        a, b = share * self.delta.a, share * self.delta.b
        left, right = np.hstack([self.sent.b + b, b]), np.vstack([a, self.sent.a])
        return self.scale**2 * max(squared_norm(right, left), 0.0)

    def squared_distance(self, other: LowRankChange) -> float:
        """‖D − D'‖² = ‖(B + dB)(dA − dA') + (dB − dB')(A + dA')‖²."""
        left = np.hstack([self.sent.b + self.delta.b, self.delta.b - other.delta.b])
        right = np.vstack([self.delta.a - other.delta.a, self.sent.a + other.delta.a])
        return self.scale**2 * max(squared_norm(right, left), 0.0)


class DenseChange(NamedTuple):
    """The moves of all of a group's tensors as one vector."""

    values: Matrix

    def squared(self, share: float = 1.0) -> float:
        """‖D‖² of ``share`` times the change."""
        return share**2 * float(self.values @ self.values)

    def squared_distance(self, other: DenseChange) -> float:
        """‖D − D'‖²."""
        apart = self.values - other.values
        return float(apart @ apart)


Change = LowRankChange | DenseChange
Changes = dict[GroupName, Change]


def changes_of(contribution: Contribution, current: Tensors, scale: float) -> Changes:
    """Per group the client has weight in, how it changed the model.

    Raises: ShapeMismatchError if factors do not fit the server's, StrategyError if it has none.
    """
    trained, rest = split(contribution, current)
    changes = Changes()
    for group, client in trained.items():
        sent = server_factors(current, group)
        delta = pad(client.delta, sent.rank)
        changes[group] = LowRankChange(_doubles(sent), _doubles(delta), scale)
    for group in sorted({key.group for key in rest}):
        weight = contribution.weight[group]
        if not (weight > 0).any():
            continue
        parts = [_moved(rest[key], weight) for key in sorted(rest) if key.group == group]
        changes[group] = DenseChange(np.concatenate(parts))
    return changes


def _doubles(factors: Factors) -> Factors:
    return Factors(factors.a.astype(np.float64), factors.b.astype(np.float64))


def _moved(delta: Array, weight: NDArray[np.float64]) -> Matrix:
    rows = (weight > 0).reshape((-1,) + (1,) * (delta.ndim - 1)) if weight.ndim else True
    return np.where(rows, delta, 0.0).astype(np.float64).ravel()


@dataclass(frozen=True, slots=True)
class Distances:
    """Squared distances between the clients of a round, ``(n, n)``, symmetric, 0 on the diagonal.

    Between two clients it is the mean, over the groups that both trained, of ‖D − D'‖² divided by
    the group's median ‖D‖² over all who trained it.  So a head whose rows are long does not hide
    what is done to adapters, and clients that share few groups compare with those that share many.
    Two that share no group count as far apart as the median two that do.  A group that one client
    alone trained is compared with nothing.
    """

    squared: Matrix

    @classmethod
    def between(cls, all_changes: Sequence[Changes]) -> Distances:
        """Of every pair; n²/2 times the cost of a pair, a few (2r, 2r) products per group."""
        count = len(all_changes)
        sizes = _sizes(all_changes)
        sums, shared = np.zeros((count, count)), np.zeros((count, count))
        for i in range(count):
            for j in range(i + 1, count):
                one, other = all_changes[i], all_changes[j]
                both = [group for group in sizes if group in one and group in other]
                shared[i, j] = len(both)
                sums[i, j] = sum(_between(one[g], other[g]) / sizes[g] for g in both)
        known = np.triu(shared, 1) > 0
        mean = np.divide(sums, shared, out=np.zeros_like(sums), where=known)
        mean[np.triu(~known, 1)] = float(np.median(mean[known])) if known.any() else 0.0
        return cls(mean + mean.T)


def _between(one: Change, other: Change) -> float:
    if isinstance(one, LowRankChange) and isinstance(other, LowRankChange):
        return one.squared_distance(other)
    if isinstance(one, DenseChange) and isinstance(other, DenseChange):
        return one.squared_distance(other)
    raise StrategyError(
        "one client trained a group with LoRA and another as it is; use one rank policy"
    )


def _sizes(all_changes: Sequence[Changes]) -> dict[GroupName, float]:
    """The median ‖D‖² of every group that anyone moved; the mean where most did not move it."""
    found = dict[GroupName, list[float]]()
    for changes in all_changes:
        for group, change in changes.items():
            found.setdefault(group, []).append(change.squared())
    sizes = {
        group: float(np.median(values)) or float(np.mean(values))
        for group, values in sorted(found.items())
    }
    return {group: size for group, size in sizes.items() if size > 0}
