"""What a message may hold: every bound in one place, and what text and names may look like.

The bounds are far above anything an honest side sends.  Reading a message takes, beside the message
itself, one copy of its tensors, and of its header at most ``HEADER_COPIES`` times its length, which
``MAX_HEADER_BYTES`` and ``MAX_HEADER_NODES`` keep small.  All of it is checked before room is made.
"""

from __future__ import annotations

import re
from typing import Final

MAX_HEADER_BYTES: Final = 8 * 2**20
MAX_HEADER_NODES: Final = 400_000
"""Objects, lists and their members in a header, counted by their punctuation."""
HEADER_COPIES: Final = 64
"""A list of two characters takes 56 bytes in Python: so many times its length may a header take."""
SMALL_CHANGE_BYTES: Final = 4 * 2**20
"""What reading even the smallest message may allocate: validators, error texts."""
MAX_DEPTH: Final = 16
MAX_TENSORS: Final = 65_536
MAX_AXES: Final = 8
MAX_AXIS: Final = 2**31
MAX_ENTRIES: Final = 100_000
"""Members of one list or mapping of a header."""
MAX_NAME_CHARS: Final = 512
MAX_TEXT_CHARS: Final = 4_096
MAX_RECIPE_CHARS: Final = 2**20

MAX_INDEX: Final = 2**31 - 1
MAX_SEED: Final = 2**64 - 1
MAX_COUNT: Final = 10**12
MAX_BYTES: Final = 2**50
MAX_SECONDS: Final = 1e9
MAX_RATE: Final = 1e30
"""FLOPs and bytes per second."""
MAX_VALUE: Final = 1e15
"""Of a value of an update: products of two factors still fit float32."""

DTYPES: Final = {"F64": 8, "F32": 4, "F16": 2, "I64": 8, "I8": 1, "U32": 4, "U16": 2, "U8": 1}
"""Kinds of numbers that travel, as safetensors names them, with their bytes."""
PHASES: Final = frozenset({"load", "evaluate", "probe", "train", "compress", "save", "compute"})
"""What a client's own seconds are split into."""

# A line break, an escape sequence or text that runs backwards would let a client forge what a log
# or a terminal shows; a surrogate cannot be encoded.
_UNREADABLE: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
_IDENTIFIER: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_PATHS: Final = re.compile(rf"{_IDENTIFIER.pattern}(/{_IDENTIFIER.pattern}){{0,7}}")


def is_identifier(text: str) -> bool:
    """Whether ``text`` may be a run's or a client's id, and so the name of a file or a folder."""
    return _IDENTIFIER.fullmatch(text) is not None


def is_assignment_id(text: str) -> bool:
    """Whether ``text`` is identifiers with a slash between them."""
    return _PATHS.fullmatch(text) is not None


def is_readable(text: str, most: int = MAX_TEXT_CHARS) -> bool:
    """Whether ``text`` is one line of at most ``most`` characters that are safe to show."""
    return len(text) <= most and _UNREADABLE.search(text) is None


def is_name(text: str) -> bool:
    """Whether ``text`` may be the name of a group or of a part."""
    return bool(text) and "|" not in text and is_readable(text, MAX_NAME_CHARS)


def readable(text: str, most: int = MAX_TEXT_CHARS) -> str:
    """``text`` as one safe line: line breaks are ``; ``, other such characters ``?``; cut."""
    lines = "; ".join(line.strip() for line in text[: 2 * most].splitlines() if line.strip())
    line = _UNREADABLE.sub("?", lines.replace("\t", " "))
    return line if len(line) <= most else line[: most - 1] + "…"
