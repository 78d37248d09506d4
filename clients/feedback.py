"""Compress an update, and remember what compression kept back for the next one.

For dense tensors the remainder is added to the next update, value by value.  For LoRA that would be
wrong: the server may rotate the factors between two rounds, so that entry (i, j) of B is not what
it was.  The remainder is therefore kept as a product E = (trained B·A so far) − (what the server
was told), as two factors, and next time projected on the factors of the day.
Source: error feedback, Karimireddy et al. 2019, arXiv 1901.09847; departs: in the space of B·A.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from strategies.compression.chain import Chain, compress, decompress
from strategies.lora import Factors, decompose, factors_of, is_factor, keys_of
from strategies.types import Array, GroupName, ParamKey, Tensors

Double = NDArray[np.float64]
Counts = Mapping[GroupName, NDArray[np.int64]]


@dataclass(slots=True, kw_only=True)
class Feedback:
    """One update on its way out.

    ``sent`` are the tensors the client started from, with the factors it did not train; ``counts``
    the examples behind each group, per row where rows are trained apart.
    """

    chain: Chain
    sent: Tensors
    counts: Counts
    residuals: dict[ParamKey, Array] = field(default_factory=dict)

    def apply(self, delta: Tensors) -> dict[ParamKey, Array]:
        """The compressed update; ``residuals`` then hold what it leaves unsaid."""
        if not self.chain:
            return dict(delta)
        wanted, products = dict[ParamKey, Array](), dict[GroupName, Factors]()
        for group in dict.fromkeys(key.group for key in delta if is_factor(key)):
            change, products[group] = self._corrected(group, delta)
            wanted |= change
        for key in delta:
            if not is_factor(key):
                wanted[key] = delta[key] + self._owed(key)
        encoded = compress(wanted, self.chain)
        told = decompress(encoded, self.chain, {key: value.shape for key, value in wanted.items()})
        for group, product in products.items():
            self._remember_product(group, product, told)
        for key in delta:
            if not is_factor(key):
                self._remember_dense(key, wanted[key] - told[key])
        return encoded

    def _corrected(self, group: GroupName, delta: Tensors) -> tuple[dict[ParamKey, Array], Factors]:
        """The change of a group's factors with the debt worked in, and the product to be told."""
        key_a, key_b = keys_of(group)
        a = np.add(self.sent[key_a], delta.get(key_a, 0), dtype=np.float64)
        b = np.add(self.sent[key_b], delta.get(key_b, 0), dtype=np.float64)
        debt = factors_of(self.residuals, group)
        product = Factors(a, b)
        if debt is not None:
            product = Factors(np.vstack([a, debt.a]), np.hstack([b, debt.b]))
            if key_b in delta:
                b = b + debt.b @ (debt.a @ _right_inverse(a))
            else:
                a = a + (_right_inverse(b.T).T @ debt.b) @ debt.a
        changed = {key_a: a - self.sent[key_a], key_b: b - self.sent[key_b]}
        return {k: v.astype(np.float32) for k, v in changed.items() if k in delta}, product

    def _remember_product(self, group: GroupName, product: Factors, told: Tensors) -> None:
        key_a, key_b = keys_of(group)
        a = np.add(self.sent[key_a], told.get(key_a, 0), dtype=np.float64)
        b = np.add(self.sent[key_b], told.get(key_b, 0), dtype=np.float64)
        parts = decompose(np.vstack([product.a, a]), np.hstack([product.b, -b]))
        rank = a.shape[0]  # what is beyond is dropped: the debt must not outgrow the adapter
        self.residuals[key_a] = parts.v[:rank].astype(np.float32)
        self.residuals[key_b] = (parts.u[:, :rank] * parts.s[:rank]).astype(np.float32)

    def _owed(self, key: ParamKey) -> Array:
        """The debt of a dense tensor, in rows that count this time."""
        debt = self.residuals.get(key)
        return np.zeros((), dtype=np.float32) if debt is None else debt * self._counting(key, debt)

    def _remember_dense(self, key: ParamKey, left: Array) -> None:
        """Rows that do not count are not averaged by the server, so their debt stays."""
        debt, counting = self.residuals.get(key, np.zeros_like(left)), self._counting(key, left)
        self.residuals[key] = (counting * left + (1 - counting) * debt).astype(np.float32)

    def _counting(self, key: ParamKey, like: Array) -> Array:
        count = self.counts[key.group]
        if count.ndim == 0 or count.shape[0] != like.shape[0]:
            return np.ones((1,) * like.ndim, dtype=np.float32)
        return (count > 0).astype(np.float32).reshape(-1, *(1,) * (like.ndim - 1))


def _right_inverse(a: Double) -> Double:
    """X (n, r) with a @ X ≈ identity for a (r, n), damped where rows nearly coincide."""
    gram = a @ a.T
    damping = 1e-6 * max(float(np.trace(gram)) / len(gram), 1e-30)
    return np.asarray(np.linalg.solve(gram + damping * np.eye(len(gram)), a).T)
