"""Classifiers of our own on top of an encoder's token features."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PretrainedConfig

# Sharpness of the cosine head: logits lie in ±1/TEMPERATURE.
TEMPERATURE: Final = 0.05


class Logits(NamedTuple):
    """What a transformers model would return, as far as it is used."""

    logits: Tensor


class CosineHead(nn.Module):
    """Logits are cosines to one vector per class; a vector of length 0 gives 0."""

    def __init__(self, width: int, num_labels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_labels, width))

    def forward(self, features: Tensor) -> Tensor:
        rows = functional.normalize(self.weight, dim=-1)
        return functional.linear(functional.normalize(features, dim=-1), rows) / TEMPERATURE


class PooledClassifier(nn.Module):
    """Encoder → one vector per example → head.

    Shapes: token features (n, t, d), pooled (n, d), logits (n, C).  The linear head starts at zero,
    so that an untrained class is neither likely nor unlikely.
    """

    base_model_prefix = "encoder"  # transformers asks models for it when their weights are renamed

    def __init__(
        self,
        encoder: nn.Module,
        *,
        num_labels: int,
        pooling: Literal["mean", "cls"],
        head: Literal["linear", "cosine"],
        normalize: bool,
    ) -> None:
        super().__init__()
        self.encoder, self.pooling, self.normalize = encoder, pooling, normalize
        self.config: PretrainedConfig = encoder.config  # type: ignore[assignment]  # peft reads it
        width: int = self.config.hidden_size
        if head == "cosine":
            self.classifier: nn.Module = CosineHead(width, num_labels)
        else:
            self.classifier = nn.Linear(width, num_labels)
            nn.init.zeros_(self.classifier.weight)
            nn.init.zeros_(self.classifier.bias)

    def features(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Pooled features (n, d), of unit length if the recipe says so."""
        tokens = self.encoder(**inputs).last_hidden_state
        if self.pooling == "cls":
            pooled = tokens[:, 0]
        else:
            pooled = _mean(tokens, inputs.get("attention_mask"))
        return functional.normalize(pooled, dim=-1) if self.normalize else pooled

    def forward(self, **inputs: Tensor) -> Logits:
        return Logits(self.classifier(self.features(inputs)))


def _mean(tokens: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return tokens.mean(dim=1)
    weights = mask[..., None].to(tokens.dtype)  # (n, t, 1)
    return (tokens * weights).sum(dim=1) / weights.sum(dim=1)
