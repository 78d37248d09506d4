"""Online EWC: one memory of what mattered, whatever the number of tasks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge, Le

from clients.methods.base import ClientMethod
from clients.methods.importance import FisherKind, anchored, blended, keep, measured, penalty
from clients.state_store import Importance

if TYPE_CHECKING:
    from torch import Tensor

    from clients.training import Batch, LocalRun

_NAME = "online-ewc"


@dataclass(frozen=True, slots=True)
class OnlineElasticWeights(ClientMethod):
    """L + (λ/2)·Σᵢ Fᵢ·(θᵢ − θ*ᵢ)² with F ← γF + F_t at every task's end; λ is ``weight``.

    θ* is the model the server sends at the start of each task.  Memory does not grow with the
    tasks; otherwise as ``ewc``.
    Source: online EWC, Schwarz et al. 2018, arXiv 1805.06370, eq. 9; departs: as ``ewc`` does.
    """

    weight: Annotated[float, Ge(0)] = 1e6
    gamma: Annotated[float, Ge(0), Le(1)] = 0.95
    examples: Annotated[int, Ge(1)] = 128
    fisher: FisherKind = "true"

    def task_start(self, run: LocalRun) -> None:
        keep(run, {_NAME: replace(_past(run), anchors={})})

    def before_local(self, run: LocalRun) -> None:
        keep(run, {_NAME: anchored(_past(run), run.received)})

    def loss(self, run: LocalRun, batch: Batch, loss: Tensor) -> Tensor:
        if not self.weight or not _past(run).anchors:
            return loss
        return loss + self.weight * penalty(run.trainable, [_past(run)])

    def task_end(self, run: LocalRun) -> None:
        past, found = _past(run), measured(run, self.examples, self.fisher)
        keep(run, {_NAME: replace(past, fisher=blended(past.fisher, found, self.gamma))})


def _past(run: LocalRun) -> Importance:
    return run.state.importances.get(_NAME, Importance())
