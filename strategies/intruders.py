"""Intruder dimensions: directions that low-rank training brought into a weight; pure."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from strategies.lora import Factors, Matrix

LEADING: Final = 10  # singular vectors of the tuned weight that are looked at
THRESHOLD: Final = 0.5  # |cos| below which a vector is like none of the base's


def num_intruders(
    base: NDArray[np.floating],
    factors: Factors,
    scale: float,
    *,
    leading: int = LEADING,
    threshold: float = THRESHOLD,
) -> int:
    """How many of the leading left singular vectors of W₀ + scale · B A are unlike all of W₀'s.

    ``base`` is W₀ (d_out, d_in).  A vector is an intruder if its |cos| to every left singular
    vector of W₀ is below ``threshold``.  Directions of singular value 0 are not counted on either
    side.  Costs two SVDs of the full weight.
    Source: Shuttleworth et al., arXiv 2410.21228, intruder dimensions, with its k = 10 and ε = 0.5;
    departs: directions that carry nothing are left out, so that a weight of zeros has none.
    """
    known = _directions(base.astype(np.float64))
    b, a = factors.b.astype(np.float64), factors.a.astype(np.float64)
    tuned = _directions(base + scale * (b @ a))
    likeness = np.abs(tuned[:, :leading].T @ known)  # (leading, rank of W₀)
    return int((likeness.max(axis=1, initial=0.0) < threshold).sum())


def _directions(weight: Matrix) -> Matrix:
    """Left singular vectors (d_out, q), largest value first, of the values above rounding."""
    u, s, _ = np.linalg.svd(weight, full_matrices=False)
    rounding = max(weight.shape) * np.finfo(np.float64).eps * s.max(initial=0.0)
    return np.asarray(u[:, s > rounding])
