"""The head is trained like everything else."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Trained:
    """Gradient descent on the head's rows; classes a client never held are masked from its loss."""
