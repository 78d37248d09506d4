"""Factor algebra of LoRA; the only home of alpha/r.

A low-rank group adds ΔW = scale · B A to its weight, B ``(d_out, r)``, A ``(r, d_in)``.  ``scale``
is alpha/r and is one number for all ranks, so a module of rank r has alpha = scale · r and factors
of different rank can be mixed without mixing scales.

Components are ordered: column i of B times row i of A, largest first after ``factorize``.  A slice
of the first k components is therefore the best rank-k approximation, and slices are nested.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from strategies.rng import Rng, rng_for
from strategies.types import (
    FACTORS,
    LORA_A,
    LORA_B,
    Array,
    GroupName,
    GroupSpec,
    ParamKey,
    Tensors,
)

# Length of a row of A under peft's initialisation: entries uniform in ±1/√d_in.  Kept after every
# re-factorisation, so that local training meets factors of the size it was tuned for.
ROW_NORM = 1 / np.sqrt(3)

# Below so many times the components wanted, ``leading`` computes them all.
_WORTH_CUTTING = 4

Matrix = NDArray[np.float64]


class Factors(NamedTuple):
    """``a (r, d_in)`` and ``b (d_out, r)``; the product is b @ a."""

    a: Array
    b: Array

    @property
    def rank(self) -> int:
        """Number of components r."""
        return int(self.a.shape[0])

    def prefix(self, rank: int) -> Factors:
        """The first ``rank`` components, as views."""
        return Factors(self.a[:rank], self.b[:, :rank])


def alpha_of(rank: int, scale: float) -> float:
    """The alpha that gives ``scale`` at ``rank``."""
    return scale * rank


def keys_of(group: GroupName) -> tuple[ParamKey, ParamKey]:
    """The keys of a group's A and B."""
    return ParamKey(group, LORA_A), ParamKey(group, LORA_B)


def factors_of(tensors: Tensors, group: GroupName) -> Factors | None:
    """The group's factors, or None if it has none."""
    key_a, key_b = keys_of(group)
    return Factors(tensors[key_a], tensors[key_b]) if key_a in tensors else None


def is_factor(key: ParamKey) -> bool:
    """Whether a tensor is a trainable LoRA factor, not a dense part or a merged component."""
    return key.part in FACTORS


def merged_keys(group: GroupName, index: int) -> tuple[ParamKey, ParamKey]:
    """The keys of the ``index``-th pair of merged factors: part of the model, never trained.

    Where merging changes the base, what was merged is ΔW = scale · Σ B A over these pairs.
    """
    return ParamKey(group, f"merged_A.{index}"), ParamKey(group, f"merged_B.{index}")


def is_merged(key: ParamKey) -> bool:
    """Whether a tensor is one of a pair of merged factors."""
    return key.part.startswith(("merged_A.", "merged_B."))


def joined(tensors: Tensors) -> dict[ParamKey, Array]:
    """The same model with each group's merged pairs and factors as one pair of factors."""
    whole = {k: v for k, v in tensors.items() if not is_factor(k) and not is_merged(k)}
    for group in dict.fromkeys(k.group for k in tensors if is_factor(k) or is_merged(k)):
        factors = whole_factors(tensors, group)
        if factors is not None:
            whole |= zip(keys_of(group), factors, strict=True)
    return whole


def num_merged(tensors: Tensors, group: GroupName) -> int:
    """How many pairs of merged factors a group has; they count from 0 without a gap."""
    index = 0
    while merged_keys(group, index)[0] in tensors:
        index += 1
    return index


def whole_factors(tensors: Tensors, group: GroupName) -> Factors | None:
    """All of a group's low-rank update, merged pairs and trainable factors, as one pair."""
    pairs = [factors_of(tensors, group)]
    pairs += [
        Factors(*(tensors[key] for key in merged_keys(group, index)))
        for index in range(num_merged(tensors, group))
    ]
    found = [pair for pair in pairs if pair is not None]
    if len(found) < 2:
        return found[0] if found else None
    return Factors(np.vstack([f.a for f in found]), np.hstack([f.b for f in found]))


def initial_factors(linear: tuple[int, int], rank: int, rng: Rng) -> Factors:
    """A uniform in ±1/√d_in as peft draws it, B zero: the adapter starts as the identity."""
    d_out, d_in = linear
    bound = 1 / np.sqrt(d_in)
    a = rng.uniform(-bound, bound, size=(rank, d_in)).astype(np.float32)
    return Factors(a, np.zeros((d_out, rank), dtype=np.float32))


def drawn_factors(seed: int, group: GroupSpec, rank: int) -> Factors:
    """The factors every run of ``seed`` starts from.

    Rows of A are drawn one after another, so those of a smaller rank are the first of a larger.
    """
    if group.linear is None:
        raise ValueError(f"group {group.name!r} is {group.kind}, LoRA needs a linear one")
    return initial_factors(group.linear, rank, rng_for(seed, "initial-factors", group.name))


def squared_norm(a: Matrix, b: Matrix) -> float:
    """‖b a‖²_F from two r × r products; the d_out × d_in matrix is never formed."""
    return float(np.sum((b.T @ b) * (a @ a.T)))


def spectrum(factors: Factors) -> Matrix:
    """Singular values of b @ a, descending (r,), from r × r products alone.

    Accurate to about 1e-7 of the largest, half the digits of ``decompose``, at a fraction of its
    cost: enough to compare components, not to merge.
    """
    a, b = factors.a.astype(np.float64), factors.b.astype(np.float64)
    values, vectors = np.linalg.eigh(a @ a.T)
    half = vectors * np.sqrt(np.clip(values, 0, None))  # half @ half.T = a @ a.T
    squared = np.linalg.eigvalsh(half.T @ (b.T @ b) @ half)
    return np.asarray(np.sqrt(np.clip(squared, 0, None))[::-1])


class Decomposition(NamedTuple):
    """b @ a = u · diag(s) · v, s descending; ``u (d_out, q)``, ``s (q,)``, ``v (q, d_in)``.

    ``rest`` is the Frobenius norm of the components that were left out.
    """

    u: Matrix
    s: Matrix
    v: Matrix
    rest: float = 0.0

    def norm_from(self, index: int) -> float:
        """Frobenius norm of all components from ``index`` on, those left out among them."""
        return float(np.hypot(np.linalg.norm(self.s[index:]), self.rest))


def decompose(a: Matrix, b: Matrix) -> Decomposition:
    """SVD of b @ a by QR of both factors and an SVD of the small core.

    Costs O((d_out + d_in) r² + r³) and never forms the d_out × d_in matrix.
    """
    q_b, r_b = np.linalg.qr(b)
    q_a, r_a = np.linalg.qr(a.T)
    u, s, v = np.linalg.svd(r_b @ r_a.T, full_matrices=False)
    return Decomposition(q_b @ u, s, v @ q_a.T)


def leading(a: Matrix, b: Matrix, count: int) -> Decomposition:
    """The ``count`` largest components of the SVD of b @ a; all of them where there are few.

    The right singular vectors come from the r × r matrix R bᵀb Rᵀ with aᵀ = QR, and are made exact
    by a Rayleigh-Ritz step: s has the digits of ``decompose``, ``rest`` half of them, in less than
    half the time.
    """
    if _WORTH_CUTTING * count > min(a.shape[0], a.shape[1], b.shape[0]):
        return decompose(a, b)
    if a.shape[1] > b.shape[0]:
        u, s, v, rest = leading(b.T, a.T, count)
        return Decomposition(v.T, s, u.T, rest)
    r_a = np.asarray(np.linalg.qr(a.T, mode="r"))
    gram = r_a @ (b.T @ b) @ r_a.T
    vectors = np.linalg.eigh(gram)[1][:, : -count - 1 : -1]  # eigh's values ascend
    u, s, _ = np.linalg.svd(b @ (r_a.T @ vectors), full_matrices=False)
    v, triangle = np.linalg.qr(a.T @ (b.T @ u))
    v *= np.where(np.diagonal(triangle) < 0, -1.0, 1.0)
    left_out = max(float(np.trace(gram) - s @ s), 0.0)
    return Decomposition(u, s, v.T, np.sqrt(left_out))


def to_factors(parts: Decomposition, rank: int) -> Factors:
    """The leading ``rank`` components in float32; rows of A have length ``ROW_NORM``.

    The whole spectrum goes to B.  A then stays well scaled however small ΔW is, and directions that
    carry nothing yet (s = 0) have B = 0 and a non-zero A, so they can still be trained.
    """
    a = ROW_NORM * parts.v[:rank]
    b = parts.u[:, :rank] * (parts.s[:rank] / ROW_NORM)
    return Factors(a.astype(np.float32), b.astype(np.float32))
