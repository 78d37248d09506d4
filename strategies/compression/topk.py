"""Only the largest values, with their places as indices or as a bitmap."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Final

import numpy as np
from annotated_types import Gt, Le

from strategies.compression.reading import require
from strategies.errors import WireError
from strategies.protocols import Encoded
from strategies.types import Array

# An index takes 32 bits and a bitmap one per value: the bitmap is smaller above this density.
_BITMAP_DENSITY: Final = 1 / 32


@dataclass(frozen=True, slots=True)
class TopK:
    """Keep the ``density`` share of values that are largest in magnitude, at least one.

    Ties go to the earlier value.  What is left out is lost unless the sender feeds it back.
    Source: sparse communication as in FLASC, arXiv 2406.05233; departs: per tensor, not over all
    of an adapter together.
    """

    keeps_shape: ClassVar[bool] = False
    density: Annotated[float, Gt(0), Le(1)] = 0.1

    def encode(self, values: Array) -> Encoded:
        flat = np.ascontiguousarray(values).reshape(-1)
        kept = max(1, round(self.density * flat.size)) if flat.size else 0
        size = np.where(np.isnan(flat), np.inf, np.abs(flat))  # a NaN must be seen, not dropped
        order = np.argsort(-size, kind="stable")[:kept]
        places = np.sort(order).astype(np.uint32)
        if kept > _BITMAP_DENSITY * flat.size:
            mask = np.zeros(flat.size, dtype=np.bool_)
            mask[places] = True
            return {"values": flat[places], "bitmap": np.packbits(mask)}
        return {"values": flat[places], "index": places}

    def decode(self, encoded: Encoded, shape: tuple[int, ...]) -> Array:
        size = math.prod(shape)
        places = _places(encoded, size)
        values = np.asarray(encoded["values"])
        if values.shape != places.shape:
            raise WireError(f"{values.shape} values for {places.size} places")
        dense = np.zeros(size, dtype=np.float32)
        dense[places] = values
        return dense.reshape(shape)

    def bytes_per_value(self) -> float:
        return self.density * 4.0 + min(self.density * 4.0, 1 / 8)


def _places(encoded: Encoded, size: int) -> Array:
    """Ascending places of the kept values."""
    if "bitmap" in encoded:
        bitmap, _ = require(
            encoded, bitmap=(np.uint8, (-(-size // 8),)), values=(np.float32, (-1,))
        )
        return np.flatnonzero(np.unpackbits(bitmap, count=size))
    index, _ = require(encoded, index=(np.uint32, (-1,)), values=(np.float32, (-1,)))
    if index.size > size or (index.size and int(index.max()) >= size):
        raise WireError(f"place {int(index.max())} in a tensor of {size} values")
    if (np.diff(index.astype(np.int64)) <= 0).any():
        raise WireError("places are not ascending")
    return index
