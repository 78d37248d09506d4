"""A second, slow reader of the frame: standard library and NumPy alone, field by field."""

from __future__ import annotations

import json
import math
import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from strategies import limits

NUMPY = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I8": "i1", "U32": "<u4", "U16": "<u2",
    "U8": "u1",
}  # fmt: skip
BIDI = {"RLO", "LRO", "RLE", "LRE", "PDF", "LRI", "RLI", "FSI", "PDI"}


class Invalid(Exception):  # noqa: N818 - a verdict
    """The message is not valid; says why."""


def need(condition: object, why: str) -> None:
    if not condition:
        raise Invalid(why)


@dataclass(frozen=True)
class Frame:
    kind: str
    body: dict[str, Any]
    tensors: dict[tuple[str, str], np.ndarray]


def read(message: bytes) -> Frame:
    """Raises: Invalid."""
    need(len(message) >= 8, "short")
    length = int.from_bytes(message[:8], "little")
    need(length <= limits.MAX_HEADER_BYTES and 8 + length <= len(message), "header length")
    try:
        table = json.loads(message[8 : 8 + length])
        header = json.loads(table.pop("__metadata__")["perennial"])
        kind, body, version = header["kind"], header["body"], header["version"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Invalid(f"no header: {error!r:.60}") from None
    need(version == "1" and isinstance(version, str), "version")
    need(isinstance(kind, str) and isinstance(body, dict), "kind or body")
    return Frame(kind, body, _tensors(table, message[8 + length :]))


def _tensors(table: dict[str, Any], data: bytes) -> dict[tuple[str, str], np.ndarray]:
    tensors, position = {}, 0
    for name, entry in table.items():
        need(isinstance(entry, dict) and set(entry) == {"dtype", "shape", "data_offsets"}, "entry")
        need(isinstance(entry["data_offsets"], list), "offsets")
        need(all(type(x) is int for x in entry["data_offsets"]), "offsets")
        need(len(entry["data_offsets"]) == 2, "offsets")
        need(entry["dtype"] in list(NUMPY) and isinstance(entry["shape"], list), "dtype or shape")
        need(all(type(x) is int and 0 <= x <= limits.MAX_AXIS for x in entry["shape"]), "axes")
        need(len(entry["shape"]) <= limits.MAX_AXES, "axes")
        group, bar, part = name.partition("|")
        need(bar and name_ok(group) and name_ok(part), "tensor name")
    for name, entry in sorted(table.items(), key=lambda item: item[1]["data_offsets"]):
        begin, end = entry["data_offsets"]
        dtype = np.dtype(NUMPY[entry["dtype"]])
        need(begin == position, "hole or overlap")
        need(math.prod(entry["shape"]) * dtype.itemsize == end - begin, "size")
        position = end
        need(end <= len(data), "cut short")
        group, _, part = name.partition("|")
        value = np.frombuffer(data[begin:end], dtype=dtype).reshape(entry["shape"])
        tensors[group, part] = value
    need(position == len(data), "bytes left over")
    return tensors


def text_ok(value: object, most: int = limits.MAX_TEXT_CHARS) -> bool:
    return isinstance(value, str) and len(value) <= most and _safe(value)


@lru_cache(10_000)
def _safe(value: str) -> bool:
    return not any(
        unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") or unicodedata.bidirectional(c) in BIDI
        or c in "\u200e\u200f"
        for c in value
    )  # fmt: skip


def name_ok(value: object) -> bool:
    return text_ok(value, limits.MAX_NAME_CHARS) and value != "" and "|" not in str(value)


def id_ok(value: object) -> bool:
    if not isinstance(value, str) or not 0 < len(value) <= 128 or not value.isascii():
        return False
    return value[0].isalnum() and all(c.isalnum() or c in "._-" for c in value)


def whole(value: object, low: float, high: float) -> bool:
    """An integer, or a float that is one."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return not (isinstance(value, float) and not value.is_integer()) and low <= value <= high


def real(value: object, low: float, high: float) -> bool:
    """A number that a float holds without rounding."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        return False
    return isinstance(value, float) or (abs(value) < 10**300 and int(float(value)) == value)
