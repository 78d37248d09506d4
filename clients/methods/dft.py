"""DFT: tokens the model finds surprising teach it less."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import torch
from annotated_types import Ge, Le
from torch.nn import functional

from clients.methods.base import ClientMethod
from clients.model import IGNORED
from strategies.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor

    from clients.training import Batch, LocalRun


@dataclass(frozen=True, slots=True)
class DynamicFinetuning(ClientMethod):
    """Per answer token −sg(p)·log p instead of −log p, p the probability of the right token.

    The gradient is p times that of ordinary fine-tuning, so what the model holds for impossible
    hardly moves it: good for style and reasoning, bad for new facts.  ``share`` blends the two.
    For causal LMs.  Put it before methods that add to the loss; the weights that a replay policy
    puts on examples do not reach its part.
    Source: DFT, arXiv 2508.05629, eq. 9.
    """

    share: Annotated[float, Ge(0), Le(1)] = 1.0

    def loss(self, run: LocalRun, batch: Batch, loss: Tensor) -> Tensor:
        if run.recipe.task != "causal-lm":
            raise ModelError(
                f"client method 'dft' needs model.task = 'causal-lm', found {run.recipe.task!r}; "
                "new classes start at p = 0 and would never be learnt"
            )
        weighted = weighted_completion_losses(batch.logits, batch.inputs["labels"]).mean()
        return (1 - self.share) * loss + self.share * weighted


def weighted_completion_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over each completion of −sg(p)·log p (n,); ``labels`` (n, t), −100 elsewhere."""
    predicted, targets = logits[:, :-1].float(), labels[:, 1:]
    losses = functional.cross_entropy(
        predicted.transpose(1, 2), targets, reduction="none", ignore_index=IGNORED
    )  # (n, t−1): −log p
    weights = torch.exp(-losses).detach()
    return (weights * losses).sum(dim=1) / (targets != IGNORED).sum(dim=1).clamp(min=1)
