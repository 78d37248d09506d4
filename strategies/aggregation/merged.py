"""The frozen part of a low-rank group that grows by what is merged into it."""

from __future__ import annotations

import numpy as np

from strategies.lora import Factors, decompose, merged_keys, num_merged
from strategies.types import Array, GroupName, ParamKey, Tensors

# Relative to the norms of the factors; a singular value below it is rounding of the sum.
_NOISE = 1e-10


def grown(tensors: Tensors, group: GroupName, pair: Factors) -> dict[ParamKey, Array]:
    """The tensors with b @ a of ``pair`` added to the group's merged part.

    The pair is appended and earlier ones stay as they are, so that a client that has them needs
    only the last.  Once their ranks add up to more than a matrix of that shape can have, all pairs
    become one, index 0, with the same product.  A pair of rank 0 changes nothing.
    """
    if pair.rank == 0:
        return dict(tensors)
    count = num_merged(tensors, group)
    pairs = [Factors(*(tensors[k] for k in merged_keys(group, i))) for i in range(count)]
    full = min(pair.b.shape[0], pair.a.shape[1])
    if sum(old.rank for old in pairs) + pair.rank <= full:
        return dict(tensors) | _entry(group, count, pair)
    replaced = {key for i in range(count) for key in merged_keys(group, i)}
    others = {key: value for key, value in tensors.items() if key not in replaced}
    whole = Factors(
        np.vstack([p.a for p in (*pairs, pair)]), np.hstack([p.b for p in (*pairs, pair)])
    )
    return others | _entry(group, 0, compact(whole))


def compact(pair: Factors) -> Factors:
    """The same product in as few components as it has, largest first; rank 0 if it is zero."""
    a, b = pair.a.astype(np.float64), pair.b.astype(np.float64)
    parts = decompose(a, b)
    noise = _NOISE * float(np.linalg.norm(a) * np.linalg.norm(b))
    rank = int(np.sum(parts.s > noise))
    return Factors(parts.v[:rank], parts.u[:, :rank] * parts.s[:rank])


def _entry(group: GroupName, index: int, pair: Factors) -> dict[ParamKey, Array]:
    values = (factor.astype(np.float32) for factor in pair)
    return dict(zip(merged_keys(group, index), values, strict=True))
