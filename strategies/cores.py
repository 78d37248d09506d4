"""How many CPU cores are ours, and work on all of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")


def usable_cores() -> int:
    """The cores this process may run on, which can be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def side_by_side(work: Callable[[K], V], keys: Collection[K]) -> dict[K, V]:
    """``work`` of every key, a thread per core; in the order of the keys.

    For what lets go of the interpreter, as NumPy's linear algebra does, on one BLAS thread each.
    """
    with ThreadPoolExecutor(usable_cores()) as pool:
        return dict(zip(keys, pool.map(work, keys), strict=True))
