"""Two bytes per value: IEEE half precision, or the upper half of float32."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from strategies.compression.reading import require
from strategies.protocols import Encoded
from strategies.types import Array


@dataclass(frozen=True, slots=True)
class Float16:
    """Round to the nearest half-precision number; 11 significant bits.

    Values beyond ±65504 become ±65504 instead of infinity.
    """

    keeps_shape: ClassVar[bool] = True

    def encode(self, values: Array) -> Encoded:
        largest = np.finfo(np.float16).max
        return {"values": np.clip(values, -largest, largest).astype(np.float16)}

    def decode(self, encoded: Encoded, shape: tuple[int, ...]) -> Array:
        (values,) = require(encoded, values=(np.float16, shape))
        return values.astype(np.float32)

    def bytes_per_value(self) -> float:
        return 2.0


@dataclass(frozen=True, slots=True)
class BFloat16:
    """Keep the upper 16 bits of float32, rounded to even: its range, 8 significant bits.

    NumPy has no such type, so the bits travel as unsigned integers.
    """

    keeps_shape: ClassVar[bool] = True

    def encode(self, values: Array) -> Encoded:
        bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
        rounded = bits + 0x7FFF + ((bits >> 16) & 1)
        # Rounding a NaN may carry it into an infinity; it must stay visible as a NaN.
        kept = np.where(np.isnan(values), bits | 0x400000, rounded)
        return {"values": (kept >> 16).astype(np.uint16)}

    def decode(self, encoded: Encoded, shape: tuple[int, ...]) -> Array:
        (bits,) = require(encoded, values=(np.uint16, shape))
        return (bits.astype(np.uint32) << 16).view(np.float32)

    def bytes_per_value(self) -> float:
        return 2.0
