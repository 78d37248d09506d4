"""Arrays in a file of our own: an uncompressed npz of numbers, never more than the file holds."""

from __future__ import annotations

import math
import struct
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Final

import numpy as np
from numpy.lib import format as npy

from strategies.types import Array

DAMAGED: Final = (OSError, ValueError, KeyError, IndexError, TypeError)
"""What a file that does not hold what it should raises when it is read, or looked into."""
_BROKEN: Final = (
    zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, struct.error, ArithmeticError,
    MemoryError, SyntaxError,
)  # fmt: skip
_SUFFIX: Final = ".npy"
_KINDS: Final = "biuf"
_HEADER_CHARS: Final = 10_000  # numpy's own bound on what it parses


def read_arrays(path: Path) -> dict[str, Array]:
    """All arrays of a file that ``np.savez`` wrote, by name.

    Nothing is unpickled or decompressed: an array takes as many bytes as it has in the file.
    Raises: ValueError for anything else, OSError if it cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return {
                entry.filename.removesuffix(_SUFFIX): _array(archive, entry, path.stat().st_size)
                for entry in archive.infolist()
            }
    except _BROKEN as error:
        raise ValueError(f"no archive of arrays: {type(error).__name__}: {error}") from None


def _array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, most: int) -> Array:
    stored = entry.compress_type == zipfile.ZIP_STORED and entry.file_size == entry.compress_size
    # One flipped bit makes the entries that follow a comment of this one: nothing would miss them.
    alone = not entry.comment and not entry.extra
    if not (stored and alone and entry.filename.endswith(_SUFFIX) and entry.file_size <= most):
        raise ValueError(f"{entry.filename!r:.80} is no uncompressed array")
    raw = archive.read(entry)
    head = BytesIO(raw)
    version = npy.read_magic(head)
    if version != (1, 0):
        raise ValueError(f"{entry.filename!r:.80} is of npy version {version}, expected (1, 0)")
    shape, is_fortran, dtype = npy.read_array_header_1_0(head, max_header_size=_HEADER_CHARS)
    if dtype.kind not in _KINDS:
        raise ValueError(f"{entry.filename!r:.80} holds {dtype}, expected numbers")
    available = len(raw) - head.tell()
    if math.prod(shape) * dtype.itemsize != available:
        raise ValueError(f"{entry.filename!r:.80} of shape {shape} has {available} bytes")
    flat = np.frombuffer(raw, dtype=dtype, offset=head.tell()).copy()
    return flat.reshape(shape[::-1]).T if is_fortran else flat.reshape(shape)
