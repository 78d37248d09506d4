"""Messages that are nearly right: one field changed, a byte flipped, cut short, tensors swapped."""

from __future__ import annotations

import copy
import json
import random
import struct
from typing import Any

NUMBERS: tuple[Any, ...] = (
    0, 1, -1, 2, 3, 5, 9, 2**31, 2**63, 2**64, 10**30, -(2**63), 0.5, -0.5, 1e-30, 1e16, 1e300,
    float("nan"), float("inf"), float("-inf"), True, False, None, "1", "", [], {}, 10**400,
)  # fmt: skip
TEXTS: tuple[Any, ...] = (
    "", "run", "../../x", "/etc/passwd", "a\nb", "\x1b[2J", "\u202eabc", "\ud800", "x" * 600,
    "x" * 5000, "a|b", "a|b|c", "#examples", "~x", "head", "client-0", "client-1",
    "gradient-energy",
    "total", "up", "flops", "²", "٣", "0", "crashed", 7, None, [], "__metadata__", "\x00",
)  # fmt: skip
DTYPES = (
    "F64",
    "F32",
    "F16",
    "BF16",
    "I64",
    "I32",
    "I8",
    "U8",
    "U16",
    "U32",
    "BOOL",
    "C64",
    "X",
    3,
)
SHAPES = (
    [], [0], [1], [2], [4], [7], [1, 7], [7, 1], [2, 7], [5, 2], [4, 7], [10**12], [2**31, 2**31],
    [2**62], [2**64], [-1], [0, 2**62], [1] * 9, [1.0], ["2"], [True], "2", None,
)  # fmt: skip


_NO_MESSAGE = (
    ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError, struct.error,
)  # fmt: skip


def spoilt(message: bytes, others: tuple[bytes, ...], rng: random.Random) -> bytes:
    """A copy of ``message`` with something changed; sometimes several things."""
    for _ in range(1 + (rng.random() < 0.15)):
        try:
            message = rng.choice(_WAYS)(message, others, rng)
        except _NO_MESSAGE:  # it has been spoilt before
            message = _bytes(message, others, rng)
    return message


def opened(message: bytes) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    """Tensor table, our own header, and the tensors' bytes."""
    (length,) = struct.unpack_from("<Q", message)
    table = json.loads(message[8 : 8 + length])
    header = json.loads(table.pop("__metadata__")["perennial"])
    return table, header, message[8 + length :]


def closed(table: dict[str, Any], header: Any, data: bytes) -> bytes:
    """The message of these parts, whatever they are."""
    whole = {"__metadata__": {"perennial": json.dumps(header)}, **table}
    text = json.dumps(whole).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def _places(value: Any, found: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """Every container with every key or index of it."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in items:
        found.append((value, key))
        if isinstance(item, dict | list):
            _places(item, found)
    return found


def _field(message: bytes, others: tuple[bytes, ...], rng: random.Random) -> bytes:
    table, header, data = opened(message)
    container, key = rng.choice(_places(header, []))
    way = rng.random()
    if way < 0.6:
        container[key] = copy.deepcopy(rng.choice(NUMBERS + TEXTS))
    elif way < 0.7:
        del container[key]
    elif way < 0.85 and isinstance(container, dict):
        container[rng.choice([t for t in TEXTS if isinstance(t, str)])] = container[key]
    elif isinstance(container, list):
        container.insert(key, copy.deepcopy(container[key]))
    else:
        container[str(key)] = {"x": container[key]}
    return closed(table, header, data)


def _number(message: bytes, others: tuple[bytes, ...], rng: random.Random) -> bytes:
    """One number made a little or much larger or smaller: most often still of the right kind."""
    table, header, data = opened(message)
    numbers = [
        (c, k) for c, k in _places(header, []) if isinstance(c[k], int | float) and c[k] is not True
    ]
    if numbers:
        container, key = rng.choice(numbers)
        step = rng.choice((1, -1, 2, 0.5, 10, 1e6, 1e12, -1e6))
        value = container[key]
        container[key] = value + step if rng.random() < 0.7 else value * step
    return closed(table, header, data)


def _tensor(message: bytes, others: tuple[bytes, ...], rng: random.Random) -> bytes:
    table, header, data = opened(message)
    if not table:
        return _bytes(message, others, rng)
    name, other = rng.choice(list(table)), rng.choice(list(table))
    way = rng.randrange(6)
    if way == 0:
        table[name], table[other] = table[other], table[name]
    elif way == 1:
        table[name]["dtype"] = rng.choice(DTYPES)
    elif way == 2:
        table[name]["shape"] = rng.choice(SHAPES)
    elif way == 3:
        table[name]["data_offsets"] = rng.choice(([0, 2**62], [8, 4], [0, 0], [-4, 0], [0], None))
    elif way == 4:
        text = rng.choice([str(t) for t in TEXTS])
        group, _, part = name.partition("|")
        renamed = rng.choice((text, f"{text}|{part}", f"{group}|{text}", f"{group}|{part}{text}"))
        table[renamed] = table.pop(name)
    else:
        del table[name]
    return closed(table, header, data)


def _values(message: bytes, others: tuple[bytes, ...], rng: random.Random) -> bytes:
    """Bytes of one tensor: a count, an index, a value."""
    table, header, data = opened(message)
    start, end = table[rng.choice(list(table))]["data_offsets"]
    changed = bytearray(data)
    if not isinstance(start, int) or not isinstance(end, int) or not 0 <= start < end <= len(data):
        return _bytes(message, others, rng)
    at = rng.randrange(start, end)
    patterns = (b"\xff", b"\x00", b"\x7f", b"\x00\x00\xc0\x7f", b"\x00\x00\x80\x7f", b"\xff" * 8)
    pattern = rng.choice((*patterns, rng.randbytes(1)))
    at -= (at - start) % 4 * (len(pattern) > 1)
    changed[at : at + len(pattern)] = pattern[: end - at]
    return closed(table, header, bytes(changed[: len(data)]))


def _bytes(message: bytes, others: tuple[bytes, ...], rng: random.Random) -> bytes:
    if not message:
        return rng.randbytes(rng.randrange(64))
    changed, at, way = bytearray(message), rng.randrange(len(message)), rng.randrange(6)
    if way == 0:
        changed[at] ^= 1 << rng.randrange(8)
    elif way == 1:
        changed[at] = rng.randrange(256)
    elif way == 2:
        del changed[at:]
    elif way == 3:
        changed += rng.randbytes(rng.randrange(1, 64))
    elif way == 4:
        changed[:8] = struct.pack("<Q", rng.choice((0, 1, len(message), 2**31, 2**63, 2**64 - 1)))
    else:
        del changed[at : at + rng.randrange(1, 9)]
    return bytes(changed)


def _other(message: bytes, others: tuple[bytes, ...], rng: random.Random) -> bytes:
    """Another case's message: an answer to something else."""
    return rng.choice(others)


def _arbitrary(message: bytes, others: tuple[bytes, ...], rng: random.Random) -> bytes:
    if rng.random() < 0.3:
        return rng.randbytes(rng.randrange(400))
    header: Any = rng.choice((
        {"version": "1", "kind": "update", "body": rng.choice(NUMBERS)},
        {"version": "1", "kind": rng.choice(TEXTS), "body": {}},
        {"version": rng.choice(NUMBERS), "kind": "update", "body": {}},
        rng.choice(NUMBERS),
        {"version": "1", "kind": "update", "body": _nested(rng.randrange(1, 300))},
        {"version": "1", "kind": "update", "body": {str(i): [] for i in range(2000)}},
    ))  # fmt: skip
    return closed({}, header, b"")


def _nested(depth: int) -> Any:
    value: Any = {}
    for _ in range(depth):
        value = {"x": [value]}
    return value


_WAYS = (_field, _field, _field, _number, _number, _tensor, _tensor, _values, _values, _bytes,
         _other, _arbitrary)  # fmt: skip
