"""The penalty that lets a client's adapter end in small components, which it then prunes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from annotated_types import Gt, Lt

from clients.methods.base import ClientMethod
from strategies.types import LORA_A, LORA_B, ParamKey

if TYPE_CHECKING:
    from torch import Tensor

    from clients.training import Batch, LocalRun


@dataclass(frozen=True, slots=True)
class TailPenalty(ClientMethod):
    """Adds λ·‖B tail‖_F·‖A tail‖_F per group, the tail being the components from ⌊γ r⌋ on.

    ``gamma`` should be that of rank policy ``hetlora``.
    Source: HetLoRA, arXiv 2401.06432, the regulariser of its local objective.
    """

    weight: Annotated[float, Gt(0)] = 0.01
    gamma: Annotated[float, Gt(0), Lt(1)] = 0.85

    def loss(self, run: LocalRun, batch: Batch, loss: Tensor) -> Tensor:
        for key, a in run.trainable.items():
            b = run.trainable.get(ParamKey(key.group, LORA_B))
            if key.part == LORA_A and b is not None:
                kept = int(self.gamma * len(a))
                loss = loss + self.weight * b[:, kept:].norm() * a[kept:].norm()
        return loss
