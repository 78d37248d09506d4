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


class SimplexHead(nn.Module):
    """Logits are cosines of a trained projection to the fixed corners of a regular simplex.

    Corner c (C − 1,) has length 1 and inner product −1/(C − 1) with any other.  Only the projection
    (C − 1, d) is trained: no class can push another's corner away, and clients agree on all of them
    without a message.
    Source: d-simplex classifier, Pernici et al. 2021, arXiv 2103.08479; departs: a projection gives
    the encoder's features the simplex's width.
    """

    corners: Tensor

    def __init__(self, width: int, num_labels: int) -> None:
        super().__init__()
        self.register_buffer("corners", simplex(num_labels), persistent=False)
        directions = torch.randn(num_labels - 1, width, generator=_own_stream())
        self.weight = nn.Parameter(directions / width**0.5)

    def forward(self, features: Tensor) -> Tensor:
        projected = functional.normalize(functional.linear(features, self.weight), dim=-1)
        return functional.linear(projected, self.corners) / TEMPERATURE


class RandomFeaturesHead(nn.Module):
    """A linear layer on φ(x) = relu(R x), R (M, d) standard normal and never trained."""

    directions: Tensor

    def __init__(self, width: int, num_labels: int, num_features: int) -> None:
        super().__init__()
        directions = torch.randn(num_features, width, generator=_own_stream())
        self.register_buffer("directions", directions, persistent=False)
        self.weight = nn.Parameter(torch.zeros(num_labels, num_features))

    def inputs(self, features: Tensor) -> Tensor:
        """φ (n, M) of pooled features (n, d)."""
        return functional.relu(functional.linear(features, self.directions))

    def forward(self, features: Tensor) -> Tensor:
        return functional.linear(self.inputs(features), self.weight)


def simplex(num_corners: int) -> Tensor:
    """The corners (C, C − 1) of a regular simplex around the origin, each of length 1."""
    count = num_corners
    helmert = torch.zeros(count, count - 1, dtype=torch.float64)
    for column in range(count - 1):
        helmert[: column + 1, column] = 1.0
        helmert[column + 1, column] = -(column + 1.0)
    corners = functional.normalize(helmert, dim=0)  # orthonormal columns, each summing to 0
    lengths: Tensor = corners * (count / (count - 1)) ** 0.5
    return lengths.float()


def _own_stream() -> torch.Generator:
    """A stream that the seed alone decides, not what was drawn before."""
    return torch.Generator().manual_seed(torch.initial_seed())


def head_of(
    kind: Literal["linear", "cosine", "simplex", "random-features"],
    width: int,
    num_labels: int,
    num_features: int,
) -> nn.Module:
    """A head that favours no class."""
    match kind:
        case "cosine":
            return CosineHead(width, num_labels)
        case "simplex":
            return SimplexHead(width, num_labels)
        case "random-features":
            return RandomFeaturesHead(width, num_labels, num_features)
    linear = nn.Linear(width, num_labels)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


class PooledClassifier(nn.Module):
    """Encoder → one vector per example → head.

    Shapes: token features (n, t, d), pooled (n, d), logits (n, C).
    """

    base_model_prefix = "encoder"  # transformers asks models for it when their weights are renamed

    def __init__(
        self,
        encoder: nn.Module,
        *,
        head: nn.Module,
        pooling: Literal["mean", "cls"],
        normalize: bool,
    ) -> None:
        super().__init__()
        self.encoder, self.pooling, self.normalize = encoder, pooling, normalize
        self.config: PretrainedConfig = encoder.config  # type: ignore[assignment]  # peft reads it
        self.classifier = head

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
