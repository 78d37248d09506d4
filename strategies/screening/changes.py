"""How each client changed the model, and how far changes are apart; no ΔW is ever formed.

Low-rank groups: a client was sent the first r components B (d_out, r), A (r, d_in) and answers with
dB, dA.  What counts is the change of the product, D = scale · ((B + dB)(A + dA) − B A), for factors
can differ where models do not.  Deltas of lower rank are padded with zeros: components a client was
not sent did not move.  All else is arithmetic of (d, 2r) matrices, in float64.

Dense groups: the moves themselves, all parts of a group side by side, row by row.  A row the client
has no weight in did not move, whatever it sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from strategies.aggregation.low_rank import pad, server_factors, split
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
    """The moves of all of a group's tensors side by side, ``(rows, width)``.

    ``held`` are the rows the client has weight in; the others are zero.  A group whose weight is
    one number is one row.
    """

    values: Matrix
    held: NDArray[np.bool_]

    def squared(self, share: float = 1.0) -> float:
        """‖D‖² of ``share`` times the change."""
        return share**2 * float(np.sum(self.values**2))


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
        parts = [rest[key] for key in sorted(rest) if key.group == group]
        changes[group] = _dense(parts, weight)
    return changes


def _doubles(factors: Factors) -> Factors:
    return Factors(factors.a.astype(np.float64), factors.b.astype(np.float64))


def _dense(parts: Sequence[Array], weight: NDArray[np.float64]) -> DenseChange:
    held = np.atleast_1d(weight > 0)
    values = np.hstack([part.astype(np.float64).reshape(len(held), -1) for part in parts])
    return DenseChange(np.where(held[:, None], values, 0.0), held)


@dataclass(frozen=True, slots=True)
class Distances:
    """Squared distances between the clients of a round, ``(n, n)``, symmetric, 0 on the diagonal.

    Over what both clients trained, every part relative to its own size in the round, so that a head
    whose rows are long does not hide what is done to adapters, and clients that share little
    compare with those that share much:

    * a low-rank group: ‖D − D'‖² over the median ‖D‖² of all who trained it;
    * a dense group: the mean of the same over the rows both hold, each row by itself;
    * the mean over the low-rank groups and the mean over the dense ones, and of these two the mean.
      Where clients agree is in the rows of classes they share: were the head one group among
      dozens, an update turned round would not be told from others.

    Two that share nothing count as far apart as the median two that do.  What one client alone
    trained is compared with nothing.
    """

    squared: Matrix

    @classmethod
    def between(cls, all_changes: Sequence[Changes]) -> Distances:
        """Of every pair; n²/2 times the cost of a pair, a few (2r, 2r) products per group."""
        groups = sorted({group for changes in all_changes for group in changes})
        found = [[changes.get(group) for changes in all_changes] for group in groups]
        low_rank = _mean_known([_low_rank_apart(changes) for changes in found], len(all_changes))
        dense = _mean_known([_rows_apart(changes) for changes in found], len(all_changes))
        mean = _mean_known([low_rank, dense], len(all_changes))
        known = mean[~np.isnan(mean)]
        mean[np.isnan(mean)] = float(np.median(known)) if len(known) else 0.0
        np.fill_diagonal(mean, 0.0)
        return cls(mean)


def _low_rank_apart(changes: Sequence[Change | None]) -> Matrix:
    """Relative squared distances in a low-rank group, NaN where not both trained it."""
    apart = np.full((len(changes), len(changes)), np.nan)
    trained = {i: c for i, c in enumerate(changes) if isinstance(c, LowRankChange)}
    size = _size([change.squared() for change in trained.values()])
    for (i, one), (j, other) in combinations(trained.items(), 2) if size > 0 else ():
        apart[i, j] = apart[j, i] = one.squared_distance(other) / size
    return apart


def _rows_apart(changes: Sequence[Change | None]) -> Matrix:
    """Mean over the rows both hold of relative squared distances, NaN where there is none."""
    apart = np.full((len(changes), len(changes)), np.nan)
    trained = {i: c for i, c in enumerate(changes) if isinstance(c, DenseChange)}
    if not trained:
        return apart
    squares = np.stack([np.sum(change.values**2, axis=1) for change in trained.values()])
    held = np.stack([change.held for change in trained.values()])
    sizes = np.array([_size(row[by].tolist()) for row, by in zip(squares.T, held.T, strict=True)])
    for (i, one), (j, other) in combinations(trained.items(), 2):
        both = one.held & other.held & (sizes > 0)
        if both.any():
            moved = np.sum((one.values[both] - other.values[both]) ** 2, axis=1)
            apart[i, j] = apart[j, i] = float(np.mean(moved / sizes[both]))
    return apart


def _size(squared: Sequence[float]) -> float:
    """The median, or the mean where most did not move at all; 0 of nothing."""
    return (float(np.median(squared)) or float(np.mean(squared))) if squared else 0.0


def _mean_known(found: Sequence[Matrix], count: int) -> Matrix:
    """The mean of what is not NaN, entry by entry, ``(count, count)``; NaN where nothing is."""
    stacked = np.array([*found, np.full((count, count), np.nan)])
    known = ~np.isnan(stacked)
    number, total = known.sum(axis=0), np.where(known, stacked, 0.0).sum(axis=0)
    mean = np.divide(total, number, out=np.full((count, count), np.nan), where=number > 0)
    return np.asarray(mean)
