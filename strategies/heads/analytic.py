"""Ridge regression on random features, solved by the server from sums: nothing to forget."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve, lapack

from strategies.errors import StrategyError
from strategies.heads.moments import Moments, class_counts, unpacked
from strategies.protocols import HeadShape
from strategies.types import HEAD, Array, ParamKey, State, Statistic, Tensors

# λ is searched among tr(G)/M · 10^(k/2); beyond these k the factorisation or the fit breaks down.
_EXPONENTS: Final = range(-16, 5)
_START: Final = -4


@dataclass(frozen=True, slots=True)
class Analytic:
    """W = (G + λI)⁻¹ Q with G = Σ φφᵀ and Q = Σ φyᵀ over all examples of all clients so far.

    φ(x) = relu(R x) are random features of the encoder's pooled output, R drawn from the run's
    seed, y one-hot.  G and Q are sums, so any order of tasks and clients and any partition give the
    same W as all data in one place; while the encoder stands still nothing is forgotten.  λ
    minimises generalised cross-validation, which needs the sums alone.  Needs ``model.head =
    "random-features"``.
    Source: random features with ridge regression, Rahimi and Recht 2007; as a class-incremental
    head RanPAC, McDonnell et al. 2023, arXiv 2307.02251, and federated AFL, He et al. 2024, arXiv
    2405.16240; λ by Golub, Heath and Wahba 1979, eq. 1.3; departs: sums travel as triangles of a
    QR decomposition, λ needs no held-out data.
    """

    head: ClassVar[str] = "random-features"
    statistics: ClassVar[tuple[Statistic, ...]] = ("moments", "class-counts")
    precision: Literal["float32", "float16"] = "float32"
    """Of what clients send."""

    def absorb(self, state: State, evidence: Tensors, shape: HeadShape) -> State:
        counts = class_counts(evidence, shape)
        held = np.flatnonzero(counts[0])
        found = unpacked(evidence[ParamKey(HEAD, "moments")], shape.width, len(held))
        cross = np.array(state.get("cross", np.zeros((shape.width, shape.num_classes))))
        cross[:, held] += found.cross
        return {
            **state,
            "gram": _square(state["gram"]) + found.gram if "gram" in state else found.gram,
            "cross": cross,
            "counts": state.get("counts", np.zeros(counts.shape)) + counts,
        }

    def solve(self, state: State) -> tuple[Array, State]:
        if "gram" not in state:
            raise StrategyError("an analytic head without a single client's sums")
        total = Moments(_square(state["gram"]), state["cross"])
        start = int(state.get("exponent", np.array(_START)))
        exponent, weights = best_ridge(total, state["counts"].sum(axis=1), start)
        kept = {"gram": _triangle(total.gram), "exponent": np.array(exponent)}
        return weights.T.astype(np.float32), {**state, **kept}


def best_ridge(
    total: Moments, counts: NDArray[np.float64], start: int = _START
) -> tuple[int, NDArray[np.float64]]:
    """The exponent of λ with the least cross-validation error, and its weights (M, C).

    ``counts`` (2,) are how many examples the sums stand for and of how many they are.  Walks
    downhill from ``start``; the error has one minimum on real data.
    """
    tried = dict[int, tuple[float, NDArray[np.float64]]]()

    def error(exponent: int) -> float:
        if exponent not in _EXPONENTS:
            return np.inf
        if exponent not in tried:
            tried[exponent] = ridge(total, counts, penalty_of(total, exponent))
        return tried[exponent][0]

    at = start
    step = -1 if error(at - 1) < error(at) else 1
    while error(at + step) < error(at):
        at += step
    return at, tried[at][1]


def penalty_of(total: Moments, exponent: int) -> float:
    """λ in the units of G."""
    return float(np.trace(total.gram) / len(total.gram) * 10.0 ** (exponent / 2))


def ridge(
    total: Moments, counts: NDArray[np.float64], penalty: float
) -> tuple[float, NDArray[np.float64]]:
    """Generalised cross-validation error, and W (M, C).

    V(λ) = (RSS/n) / (1 − df/n)² with df = M − λ·tr((G + λI)⁻¹), n the examples looked at and RSS =
    Σ w‖y − Wᵀφ‖², where an example that stands for w weighs w and Σ w‖y‖² = Σ w.
    Raises: StrategyError if G + λI is not positive definite.
    """
    gram, cross = total
    weight, count = (float(value) for value in counts)
    shifted = gram + penalty * np.eye(len(gram))
    factor, fault = lapack.dpotrf(shifted, lower=1, overwrite_a=1)
    if fault:
        raise StrategyError(
            f"the sums of an analytic head are not positive definite at row {fault}"
        )
    weights = cho_solve((factor, True), cross)
    inverse, _ = lapack.dtrtri(factor, lower=1)
    freedom = len(gram) - penalty * float(np.square(np.tril(inverse)).sum())
    residual = weight - 2 * np.sum(weights * cross) + np.sum(weights * (gram @ weights))
    left = max(1.0 - freedom / count, 1e-9)
    return float(max(residual, 0.0) / count / left**2), weights


def _triangle(gram: NDArray[np.float64]) -> Array:
    """The upper triangle, row by row, (M (M + 1) / 2,): what is kept between head steps."""
    return np.concatenate([row[index:] for index, row in enumerate(gram)])


def _square(gram: Array) -> NDArray[np.float64]:
    """The whole of a triangle; what is whole already stays as it is."""
    if gram.ndim == 2:
        return gram
    size = int((np.sqrt(8 * gram.size + 1) - 1) / 2 + 0.5)
    whole, start = np.zeros((size, size)), 0
    for index in range(size):
        whole[index, index:] = gram[start : start + size - index]
        start += size - index
    return whole + np.triu(whole, 1).T
