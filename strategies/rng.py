"""Named random streams: results depend on names, never on scheduling."""

from __future__ import annotations

import hashlib

import numpy as np

Rng = np.random.Generator


def seed_for(seed: int, *path: str | int) -> int:
    """A 63-bit seed that belongs to ``path`` alone, for libraries that want an integer."""
    # The length prefix keeps ("a", "bc") and ("ab", "c") apart.
    named = "".join(f"{len(str(part))}:{part}" for part in (seed, *path))
    digest = hashlib.sha256(named.encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def rng_for(seed: int, *path: str | int) -> Rng:
    """A generator that belongs to ``path`` alone, such as ``(client, task, round)``."""
    return np.random.default_rng(seed_for(seed, *path))
