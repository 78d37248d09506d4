"""Losses per example, and answers by generation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from clients.device import host

if TYPE_CHECKING:
    from collections.abc import Mapping

    from clients.data import Encoded
    from clients.model.adapters import AdaptedModel
    from strategies.protocols import ExampleIds

IGNORED: Final = -100


def masked_cross_entropy(logits: Tensor, labels: Tensor, allowed: Tensor) -> Tensor:
    """Cross-entropy (n,) over the allowed classes alone.

    ``logits`` (n, C); ``allowed`` (C,) or (n, C).  Classes that are not allowed get no gradient.
    """
    masked = logits.float().masked_fill(~allowed, -torch.inf)
    return functional.cross_entropy(masked, labels, reduction="none")


def completion_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean next-token loss (n,) over each completion; ``labels`` (n, t), −100 elsewhere."""
    predicted, targets = logits[:, :-1].float(), labels[:, 1:]
    losses = functional.cross_entropy(
        predicted.transpose(1, 2), targets, reduction="none", ignore_index=IGNORED
    )  # (n, t−1)
    return losses.sum(dim=1) / (targets != IGNORED).sum(dim=1).clamp(min=1)


def example_losses(model: AdaptedModel, inputs: Mapping[str, Tensor], allowed: Tensor) -> Tensor:
    """The loss of each example of a batch (n,), by the model's task."""
    return losses_of(model, model.logits(inputs), inputs, allowed)


def losses_of(
    model: AdaptedModel, logits: Tensor, inputs: Mapping[str, Tensor], allowed: Tensor
) -> Tensor:
    """The loss of each example (n,), from logits already computed."""
    if model.base.recipe.task == "causal-lm":
        return completion_losses(logits, inputs["labels"])
    return masked_cross_entropy(logits, inputs["labels"], allowed)


@torch.no_grad()
def generated(model: AdaptedModel, examples: Encoded, ids: ExampleIds) -> NDArray[np.int64]:
    """Greedy completions of the examples' prompts as tokens (n, t), at most ``max_new_tokens``."""
    prompts = model.device.inputs(examples.prompt(ids))
    width = prompts["input_ids"].shape[1]
    tokenizer = examples.tokenizer
    with model.device.autocast():
        tokens = model.module.generate(  # type: ignore[operator]  # transformers' mixin
            **prompts,
            max_new_tokens=model.base.recipe.max_new_tokens,
            do_sample=False,
            pad_token_id=tokenizer.pad_id,
            eos_token_id=tokenizer.eos_id,
        )
    return host(tokens[:, width:])


def generate(model: AdaptedModel, examples: Encoded, ids: ExampleIds) -> list[str]:
    """Greedy completions of the examples' prompts, as text."""
    return examples.decode(generated(model, examples, ids))
