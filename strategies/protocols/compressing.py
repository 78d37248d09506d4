"""Smaller forms of tensors on the wire."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Protocol

from strategies.types import Array

Encoded = Mapping[str, Array]
"""One compressed tensor: named arrays; ``values`` is what a further compressor may work on."""


class Compressor(Protocol):
    """A smaller form of a tensor on the wire, and the way back.

    One that does not keep the shape of ``values`` can only be the first of several.
    """

    keeps_shape: ClassVar[bool]

    def encode(self, values: Array) -> Encoded:
        """Named arrays that stand for ``values``, float32 of any shape; one is called values."""
        ...

    def decode(self, encoded: Encoded, shape: tuple[int, ...]) -> Array:
        """float32 of ``shape``.

        Raises: WireError if ``encoded`` does not describe such a tensor.
        """
        ...

    def bytes_per_value(self) -> float:
        """What one value of a large tensor takes."""
        ...
