"""Ridge regression on random features, solved by the server from sums: nothing to forget."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final, Literal

import numpy as np
import scipy  # its parts are loaded when they are used
from numpy.typing import NDArray

from strategies.errors import StrategyError
from strategies.heads.moments import Moments, class_counts, unpacked
from strategies.protocols import HeadShape
from strategies.rng import rng_for
from strategies.types import HEAD, Array, ParamKey, State, Statistic, Tensors

# λ is searched among tr(G)/M · 10^(k/2); beyond these k the factorisation or the fit breaks down.
_EXPONENTS: Final = range(-16, 5)
_START: Final = -4
_PROBES: Final = 64
# Rows that are multiplied out at once: one large product is faster than many small ones.
_PIECE: Final = 4096
_WAITING: Final = "waiting"


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
        phi, y = unpacked(evidence[ParamKey(HEAD, "moments")], shape.width, len(held))
        cross = np.array(state.get("cross", np.zeros((shape.width, shape.num_classes))))
        cross[:, held] += phi.T @ y
        added = {
            **state,
            "cross": cross,
            "counts": state.get("counts", np.zeros(counts.shape)) + counts,
            _WAITING: np.vstack([state.get(_WAITING, phi[:0]), phi]),
        }
        return _folded(added) if len(added[_WAITING]) >= _PIECE else added

    def solve(self, state: State) -> tuple[Array, State]:
        if "counts" not in state:
            raise StrategyError("an analytic head without a single client's sums")
        whole = _folded(state)
        start = int(state.get("exponent", np.array(_START)))
        total = Moments(whole["gram"], whole["cross"])
        exponent, weights = best_ridge(total, state["counts"].sum(axis=1), start)
        kept = {"gram": _triangle(total.gram), "exponent": np.array(exponent)}
        return weights.T.astype(np.float32), {**whole, **kept}


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
    shifted = gram.copy()
    shifted[np.diag_indices_from(shifted)] += penalty
    symmetric = shifted.T
    factor, fault = scipy.linalg.lapack.dpotrf(symmetric, lower=1, clean=0, overwrite_a=1)
    if fault:
        raise StrategyError(
            f"the sums of an analytic head are not positive definite at row {fault}"
        )
    weights = scipy.linalg.cho_solve((factor, True), cross)
    freedom = len(gram) - penalty * trace_of_inverse(factor)
    # (G + λI) W = Q, so tr WᵀGW = tr WᵀQ − λ‖W‖².
    residual = weight - np.sum(weights * cross) - penalty * np.sum(weights * weights)
    left = max(1.0 - freedom / count, 1e-9)
    return float(max(residual, 0.0) / count / left**2), weights


def trace_of_inverse(factor: NDArray[np.float64]) -> float:
    """tr((L Lᵀ)⁻¹) for ``factor`` L (M, M): exact up to 64 rows, else estimated from 64 probes.

    The probes are random signs, always the same; the relative error is about √(2/64)·‖A⁻¹‖_F / tr
    A⁻¹, which for thousands of rows is below one per cent.
    Source: Hutchinson 1990.
    """
    size = len(factor)
    if size <= _PROBES:
        return float(np.sum(scipy.linalg.cho_solve((factor, True), np.eye(size)).diagonal()))
    signs = rng_for(0, "trace", size).choice([-1.0, 1.0], size=(size, _PROBES))
    return float(np.sum(signs * scipy.linalg.cho_solve((factor, True), signs)) / _PROBES)


def _folded(state: State) -> dict[str, Array]:
    """``state`` with the waiting rows in its Gram matrix, which is whole then."""
    rows = state.get(_WAITING, np.zeros((0, len(state["cross"]))))
    kept = {name: value for name, value in state.items() if name != _WAITING}
    added = rows.T @ rows
    gram = _square(state["gram"]) + added if "gram" in state else added
    return {**kept, "gram": gram}


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
