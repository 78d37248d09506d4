"""O-LoRA: a task's adapter stays orthogonal to those of the tasks before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Ge

from clients.methods.base import ClientMethod
from strategies.lora import merged_keys, num_merged
from strategies.types import LORA_A, LORA_B

if TYPE_CHECKING:
    from torch import Tensor

    from clients.training import Batch, LocalRun


@dataclass(frozen=True, slots=True)
class OrthogonalLora(ClientMethod):
    """Adds λ₁ · Σ_groups Σᵢ ‖Aᵢ Aᵀ‖ + λ₂ · Σ_groups (‖A‖ + ‖B‖), Aᵢ frozen, of earlier tasks.

    ``l1`` sums absolute entries as the released code does, ``squared`` their squares as the paper
    says; ‖A‖ and ‖B‖ are Frobenius norms.  Goes with merging ``olora``.  In the first task there
    is no Aᵢ yet; a factor that is not trained is not penalised.
    Source: O-LoRA, arXiv 2310.14152, eq. 7 and 8.
    """

    lambda1: Annotated[float, Ge(0)] = 0.5
    lambda2: Annotated[float, Ge(0)] = 0.0
    norm: Literal["l1", "squared"] = "l1"

    def loss(self, run: LocalRun, batch: Batch, loss: Tensor) -> Tensor:
        for key, factor in run.trainable.items():
            if key.part in (LORA_A, LORA_B) and self.lambda2:
                loss = loss + self.lambda2 * factor.norm()
            if key.part != LORA_A:
                continue
            for index in range(num_merged(run.frozen, key.group)):
                old = run.model.device.tensor(run.frozen[merged_keys(key.group, index)[0]])
                loss = loss + self.lambda1 * self.overlap(old, factor)
        return loss

    def overlap(self, old: Tensor, new: Tensor) -> Tensor:
        """‖old newᵀ‖ of rows (r_old, d_in) and (r, d_in)."""
        products = old @ new.T
        return products.abs().sum() if self.norm == "l1" else products.square().sum()
