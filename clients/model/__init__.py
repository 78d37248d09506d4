"""Base models, the groups in them, and states made real with peft."""

from clients.model.adapters import AdaptedModel
from clients.model.base import Base, build_base
from clients.model.export import load_base, load_merged, merge
from clients.model.losses import (
    IGNORED,
    completion_losses,
    example_losses,
    generate,
    generated,
    losses_of,
    masked_cross_entropy,
)

__all__ = [
    "IGNORED",
    "AdaptedModel",
    "Base",
    "build_base",
    "completion_losses",
    "example_losses",
    "generate",
    "generated",
    "load_base",
    "load_merged",
    "losses_of",
    "masked_cross_entropy",
    "merge",
]
