"""Base models, the groups in them, and states made real with peft."""

from clients.model.adapters import AdaptedModel
from clients.model.base import Base, build_base
from clients.model.export import load_base, load_merged, merge
from clients.model.losses import (
    completion_losses,
    example_losses,
    generate,
    masked_cross_entropy,
)

__all__ = [
    "AdaptedModel",
    "Base",
    "build_base",
    "completion_losses",
    "example_losses",
    "generate",
    "load_base",
    "load_merged",
    "masked_cross_entropy",
    "merge",
]
