"""FedProx: a client stays near the model it was sent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge

from clients.methods.base import ClientMethod

if TYPE_CHECKING:
    from torch import Tensor

    from clients.training import Batch, LocalRun


@dataclass(frozen=True, slots=True)
class Prox(ClientMethod):
    """Adds (μ/2)·‖θ − θ_received‖² over all trained tensors, factors as they are.

    Source: FedProx, Li et al. 2020, arXiv 1812.06127, eq. 2.
    """

    mu: Annotated[float, Ge(0)] = 0.01

    def loss(self, run: LocalRun, batch: Batch, loss: Tensor) -> Tensor:
        for key, parameter in run.trainable.items():
            loss = loss + self.mu / 2 * (parameter - run.received[key]).square().sum()
        return loss
