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

from strategies.rng import Rng
from strategies.types import LORA_A, LORA_B, Array, GroupName, ParamKey, Tensors

# Length of a row of A under peft's initialisation: entries uniform in ±1/√d_in.  Kept after every
# re-factorisation, so that local training meets factors of the size it was tuned for.
ROW_NORM = 1 / np.sqrt(3)

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


def initial_factors(linear: tuple[int, int], rank: int, rng: Rng) -> Factors:
    """A uniform in ±1/√d_in as peft draws it, B zero: the adapter starts as the identity."""
    d_out, d_in = linear
    bound = 1 / np.sqrt(d_in)
    a = rng.uniform(-bound, bound, size=(rank, d_in)).astype(np.float32)
    return Factors(a, np.zeros((d_out, rank), dtype=np.float32))


def squared_norm(a: Matrix, b: Matrix) -> float:
    """‖b a‖²_F from two r × r products; the d_out × d_in matrix is never formed."""
    return float(np.sum((b.T @ b) * (a @ a.T)))


class Decomposition(NamedTuple):
    """b @ a = u · diag(s) · v, s descending; ``u (d_out, q)``, ``s (q,)``, ``v (q, d_in)``."""

    u: Matrix
    s: Matrix
    v: Matrix


def decompose(a: Matrix, b: Matrix) -> Decomposition:
    """SVD of b @ a by QR of both factors and an SVD of the small core.

    Costs O((d_out + d_in) r² + r³) and never forms the d_out × d_in matrix.
    """
    q_b, r_b = np.linalg.qr(b)
    q_a, r_a = np.linalg.qr(a.T)
    u, s, v = np.linalg.svd(r_b @ r_a.T, full_matrices=False)
    return Decomposition(q_b @ u, s, v @ q_a.T)


def to_factors(parts: Decomposition, rank: int) -> Factors:
    """The leading ``rank`` components in float32; rows of A have length ``ROW_NORM``.

    The whole spectrum goes to B.  A then stays well scaled however small ΔW is, and directions that
    carry nothing yet (s = 0) have B = 0 and a non-zero A, so they can still be trained.
    """
    a = ROW_NORM * parts.v[:rank]
    b = parts.u[:, :rank] * (parts.s[:rank] / ROW_NORM)
    return Factors(a.astype(np.float32), b.astype(np.float32))
