"""Several compressors in a row, over all tensors of a message."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from strategies.errors import WireError
from strategies.protocols import Compressor
from strategies.types import Array, ParamKey, Tensors

_MARK: Final = "#"
Chain = Sequence[Compressor]


def compress(tensors: Tensors, chain: Chain) -> dict[ParamKey, Array]:
    """Every tensor through the chain; unchanged without one.

    Each compressor works on the ``values`` of the one before it; what else that one made travels as
    it is.  Array ``n`` of stage ``i`` of part ``p`` is named ``p#i.n``.
    """
    if not chain:
        return dict(tensors)
    encoded = dict[ParamKey, Array]()
    for key, values in tensors.items():
        for stage, compressor in enumerate(chain):
            arrays = dict(compressor.encode(values))
            values = arrays.pop("values")
            encoded |= {_named(key, stage, name): array for name, array in arrays.items()}
        encoded[_named(key, len(chain) - 1, "values")] = values
    return encoded


def decompress(
    encoded: Tensors, chain: Chain, shapes: Mapping[ParamKey, tuple[int, ...]]
) -> dict[ParamKey, Array]:
    """The tensors of the given shapes; what is not in ``encoded`` is left out.

    Raises: WireError for arrays that belong to no tensor of ``shapes`` or do not describe it.
    """
    if not chain:
        return dict(encoded)
    parts = dict[ParamKey, dict[tuple[int, str], Array]]()
    for key, array in encoded.items():
        owner, stage, name = _parsed(key, len(chain))
        if owner not in shapes:
            raise WireError(f"{owner} is not part of the plan")
        parts.setdefault(owner, {})[stage, name] = array
    return {key: _decoded(key, parts[key], chain, shapes[key]) for key in parts}


def bytes_per_value(chain: Chain) -> float:
    """What one value of a large tensor takes on the wire: 4 without a chain."""
    if not chain:
        return 4.0
    first, *rest = (compressor.bytes_per_value() for compressor in chain)
    kept = getattr(chain[0], "density", 1.0)
    return first if not rest else first - 4.0 * kept + kept * rest[-1]


def _decoded(
    key: ParamKey, parts: Mapping[tuple[int, str], Array], chain: Chain, shape: tuple[int, ...]
) -> Array:
    last = len(chain) - 1
    if (last, "values") not in parts:
        raise WireError(f"{key} came without its values")
    values = parts[last, "values"]
    for stage in range(last, -1, -1):
        arrays = {name: array for (index, name), array in parts.items() if index == stage}
        arrays["values"] = values
        # Only the first stage may change the shape, so later ones restore the values' own.
        values = chain[stage].decode(arrays, shape if stage == 0 else values.shape)
    return values.astype(np.float32, copy=False)


def _named(key: ParamKey, stage: int, name: str) -> ParamKey:
    return ParamKey(key.group, f"{key.part}{_MARK}{stage}.{name}")


def _parsed(key: ParamKey, num_stages: int) -> tuple[ParamKey, int, str]:
    part, _, rest = key.part.partition(_MARK)
    text, _, name = rest.partition(".")
    stages = {str(index): index for index in range(num_stages)}
    stage = stages.get(text)
    # What an earlier stage calls its values is what the later ones made.
    if stage is None or not name or (name == "values" and stage != num_stages - 1):
        raise WireError(f"{key} is no part of a compressed tensor of {num_stages} stages")
    return ParamKey(key.group, part), stage, name
