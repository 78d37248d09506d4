"""Second moments of examples, packed: the triangle of a QR decomposition.

With Φ (n, M) the features of n examples and Y (n, k) their targets, R of ``[Φ Y] = U R`` has
``RᵀR = [Φ Y]ᵀ[Φ Y]``.  Its first ``m = min(n, M)`` rows are all that ΦᵀΦ and ΦᵀY need: as few
numbers as Φ itself while there are fewer examples than features, never more than the upper triangle
of ΦᵀΦ; no row is an example.  Its condition number is the square root of that of ΦᵀΦ, so that
sending it in low precision costs less than sending the product.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from strategies.errors import WireError
from strategies.protocols import HeadShape
from strategies.types import HEAD, Array, ParamKey, Tensors

# Rows decomposed at once; what they came to goes in with the next ones.
_PIECE: Final = 4096


class Rows(NamedTuple):
    """Rows (m, M) and (m, k) with the second moments of the examples they came from."""

    features: NDArray[np.float64]
    targets: NDArray[np.float64]


class Moments(NamedTuple):
    """ΦᵀΦ (M, M) and ΦᵀY (M, k), float64."""

    gram: NDArray[np.float64]
    cross: NDArray[np.float64]


def packed(pieces: Iterable[Array], num_features: int) -> Array:
    """float32 (m (M + k) − m (m − 1) / 2,): the first m rows of R, each from its diagonal on.

    ``pieces`` are rows of [Φ Y], (any, M + k), at least one row in all; they are read once.
    """
    waiting, num_rows = list[Array](), 0
    for piece in pieces:
        waiting.append(piece)
        num_rows += len(piece)
        if sum(map(len, waiting)) >= _PIECE:
            waiting = [_triangle(waiting)]
    kept = _triangle(waiting)[: min(num_rows, num_features)]
    return np.concatenate([row[index:] for index, row in enumerate(kept)]).astype(np.float32)


def _triangle(stack: Sequence[Array]) -> Array:
    triangle: Array = np.asarray(np.linalg.qr(np.vstack(stack).astype(np.float64), mode="r"))
    return triangle


def unpacked(values: Array, num_features: int, num_targets: int) -> Rows:
    """The rows behind ``packed``.

    Raises: WireError if no number of rows gives an array of that length.
    """
    width = num_features + num_targets
    rows = _rows(values.size, width)
    if values.ndim != 1 or not 0 < rows <= num_features or _size(rows, width) != values.size:
        raise WireError(
            f"moments of shape {values.shape}, expected one axis of at most "
            f"{_size(num_features, width)} values for {num_features} features and "
            f"{num_targets} classes"
        )
    triangle, start = np.zeros((rows, width)), 0
    for index in range(rows):
        triangle[index, index:] = values[start : start + width - index]
        start += width - index
    return Rows(triangle[:, :num_features], triangle[:, num_features:])


def class_counts(evidence: Tensors, shape: HeadShape) -> NDArray[np.float64]:
    """Per class, how many examples those looked at stand for, and how many they are, (2, C).

    Raises: WireError for another shape, nothing counted or a count below 0.
    """
    counts = evidence[ParamKey(HEAD, "class-counts")].astype(np.float64)
    if counts.shape != (2, shape.num_classes) or not counts.any() or (counts < 0).any():
        raise WireError(f"class counts {counts.shape}, expected (2, {shape.num_classes}), some > 0")
    return counts


def largest(num_features: int, num_classes: int) -> int:
    """Values in the longest array ``packed`` can return."""
    return _size(num_features, num_features + num_classes)


def _size(rows: int, width: int) -> int:
    return rows * width - rows * (rows - 1) // 2


def _rows(size: int, width: int) -> int:
    """The number of rows whose size is nearest: the smaller root of m² − (2w + 1) m + 2 size."""
    half = width + 0.5
    return round(half - math.sqrt(max(half * half - 2 * size, 0.0)))
