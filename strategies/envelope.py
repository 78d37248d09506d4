"""Bytes ⇄ a kind, a JSON header and tensors: the frame of every message, nothing of its meaning.

A message is one safetensors file: the tensors, and in its metadata a JSON header with the format's
version, the message's kind and every field that is not a tensor.  What a header announces is held
against the limits and the message's true length before anything is allocated for it.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from typing import Any, Final, Literal

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from strategies.errors import WireError
from strategies.limits import (
    DTYPES,
    MAX_AXES,
    MAX_AXIS,
    MAX_DEPTH,
    MAX_HEADER_BYTES,
    MAX_HEADER_NODES,
    MAX_TENSORS,
    is_name,
)
from strategies.types import Array, ParamKey, Tensors

VERSION: Final = "1"
Kind = Literal["assignment", "update", "failure", "profile", "recipe"]
_PUNCTUATION: Final = "[{,:"
_METADATA: Final = "__metadata__"


def pack(kind: Kind, body: Mapping[str, Any], tensors: Tensors) -> bytes:
    """One message."""
    meta = json.dumps({"version": VERSION, "kind": kind, "body": body})
    named = {key.text: np.asarray(value, order="C") for key, value in tensors.items()}
    return save(named, metadata={"perennial": meta})


def unpack(message: bytes, expected: Kind) -> tuple[dict[str, Any], dict[ParamKey, Array]]:
    """Header and tensors of a message of kind ``expected``; the tensors are one copy of its own.

    Raises: WireError.
    """
    table, header = _opened(message)
    if header["kind"] != expected:
        raise WireError(f"message of kind {header['kind']!r:.80}, expected {expected!r}")
    if fault := _table_fault(table, len(message) - 8 - _header_bytes(message)):
        raise WireError(f"damaged {expected} of {len(message)} bytes: {fault}")
    try:
        tensors = load(message)
    except (SafetensorError, KeyError, ValueError) as error:
        raise WireError(f"damaged {expected} of {len(message)} bytes: {error}") from None
    return header["body"], {ParamKey.parse(name): value for name, value in tensors.items()}


def header_of(message: bytes) -> dict[str, Any]:
    """``kind`` and ``body`` of a message; its tensors are not looked at.

    Raises: WireError.
    """
    return _opened(message)[1]


def _opened(message: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """The table of the tensors, and our own header."""
    try:
        table = _parsed(message[8 : 8 + _header_bytes(message)].decode())
        header = _parsed(table.pop(_METADATA)["perennial"])
        version, kind, body = header["version"], str(header["kind"]), header["body"].copy()
    except (struct.error, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise WireError(f"{len(message)} bytes that are not a perennial message") from None
    if version != VERSION:
        raise WireError(
            f"message format {version!r:.80}, this program speaks {VERSION!r}; upgrade the older "
            "side"
        )
    if not isinstance(body, dict) or _depth(body) > MAX_DEPTH:
        raise WireError(f"a header that is no object, or nested deeper than {MAX_DEPTH}")
    return table, {"kind": kind, "body": body}


def _header_bytes(message: bytes) -> int:
    (length,) = struct.unpack_from("<Q", message)
    if length > min(MAX_HEADER_BYTES, len(message) - 8):
        raise WireError(
            f"header of {length} bytes in a message of {len(message)}, at most {MAX_HEADER_BYTES} "
            "are read"
        )
    return int(length)


def _parsed(text: str) -> dict[str, Any]:
    """JSON text, counted before it is parsed; what is no object fails where it is looked into."""
    if (count := sum(map(text.count, _PUNCTUATION))) > MAX_HEADER_NODES:
        raise WireError(f"a header of {count} members, at most {MAX_HEADER_NODES} are read")
    found: dict[str, Any] = json.loads(text)
    return found


def _depth(value: object) -> int:
    """How deep containers lie in each other; what is deeper than allowed is not looked at."""
    depth, level = 0, [value]
    while level and depth <= MAX_DEPTH:
        inner = [x for x in level if isinstance(x, dict | list)]
        level = [y for x in inner for y in (x.values() if isinstance(x, dict) else x)]
        depth += bool(inner)
    return depth


def _table_fault(table: Mapping[str, Any], available: int) -> str:
    """What is wrong with the tensors a header announces; they must fill ``available`` bytes."""
    if len(table) > MAX_TENSORS:
        return f"{len(table)} tensors, at most {MAX_TENSORS} are read"
    announced = 0
    for name, entry in table.items():
        if not _is_key(name):
            return f"tensor {name!r:.80} is not named group|part"
        size = _size(entry)
        if size is None:
            return f"tensor {name!r:.80} of {entry!r:.80}"
        announced += size
    return "" if announced == available else f"{announced} bytes of tensors, found {available}"


def _is_key(name: str) -> bool:
    return name.count("|") == 1 and all(map(is_name, name.split("|")))


def _size(entry: object) -> int | None:
    """Bytes of an announced tensor; None if it is of no number or shape that travels."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        return None
    shape, dtype = entry["shape"], entry["dtype"]
    if not isinstance(dtype, str) or dtype not in DTYPES or not isinstance(shape, list):
        return None
    axes = all(type(x) is int and 0 <= x <= MAX_AXIS for x in shape)
    return math.prod(shape) * DTYPES[dtype] if axes and len(shape) <= MAX_AXES else None
