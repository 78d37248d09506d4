"""Every contribution counts as it came."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class NoScreening:
    """Every update that answers its order counts as it came."""
