"""One byte per value, with one scale per row or per column, whichever are fewer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np

from strategies.compression.reading import require
from strategies.protocols import Encoded
from strategies.types import Array

_LARGEST: Final = 127


@dataclass(frozen=True, slots=True)
class Int8:
    """q = round(x / s) with s = max|x| / 127 over a line: the error of a value is at most s / 2.

    Lines are rows; of a matrix that is taller than wide they are columns, so that both factors of
    a LoRA have one scale per component.  A tensor with one axis is one line.  Symmetric, zero stays
    zero.
    Source: absmax quantisation, as in LLM.int8(), arXiv 2208.07339, without its outlier part.
    """

    keeps_shape: ClassVar[bool] = True

    def encode(self, values: Array) -> Encoded:
        largest = np.abs(values).max(axis=_along(values.shape), keepdims=True, initial=0.0)
        scale = (largest / _LARGEST).astype(np.float32)
        quotient = np.divide(values, scale, out=np.zeros_like(values), where=scale > 0)
        # A NaN must reach the server as one: through the scale, for int8 has none.
        levels = np.rint(np.nan_to_num(quotient)).astype(np.int8)
        return {"values": levels, "scale": scale}

    def decode(self, encoded: Encoded, shape: tuple[int, ...]) -> Array:
        scales = list(shape)
        scales[_along(shape)] = 1
        levels, scale = require(encoded, values=(np.int8, shape), scale=(np.float32, tuple(scales)))
        with np.errstate(
            over="ignore", invalid="ignore"
        ):  # what is not finite is for the reader to refuse
            return np.multiply(levels, scale, dtype=np.float32)

    def bytes_per_value(self) -> float:
        return 1.0


def _along(shape: tuple[int, ...]) -> int:
    """The axis a line runs along."""
    tall = len(shape) == 2 and shape[0] > shape[1]
    return 0 if tall else len(shape) - 1
