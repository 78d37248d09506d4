"""Check what arrived before anything is computed from it."""

from __future__ import annotations

from typing import Any

import numpy as np

from strategies.errors import WireError
from strategies.protocols import Encoded
from strategies.types import Array


def require(encoded: Encoded, **expected: tuple[Any, tuple[int, ...]]) -> tuple[Array, ...]:
    """The named arrays, each of the given dtype and shape, and no others; −1 matches any length.

    Raises: WireError naming what is missing, unexpected or of another dtype or shape.
    """
    if encoded.keys() != expected.keys():
        raise WireError(f"compressed tensor holds {sorted(encoded)}, expected {sorted(expected)}")
    for name, (dtype, shape) in expected.items():
        array = encoded[name]
        fits = array.ndim == len(shape) and all(
            want in (-1, have) for want, have in zip(shape, array.shape, strict=True)
        )
        if array.dtype != np.dtype(dtype) or not fits:
            raise WireError(
                f"{name} is {array.dtype} {array.shape}, expected {np.dtype(dtype)} {shape}"
            )
    return tuple(encoded[name] for name in expected)
