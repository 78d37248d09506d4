"""EWC: what mattered to a past task costs to move."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge

from clients.methods.base import ClientMethod
from clients.methods.importance import FisherKind, anchored, keep, measured, penalty
from clients.state_store import Importance

if TYPE_CHECKING:
    from torch import Tensor

    from clients.training import Batch, LocalRun

_NAME = "ewc-"


@dataclass(frozen=True, slots=True)
class ElasticWeights(ClientMethod):
    """L + (λ/2)·Σ_t Σᵢ F_{t,i}·(θᵢ − θ*_{t,i})², one F_t and θ*_t per past task; λ is ``weight``.

    F_t is the diagonal Fisher information of the client's examples of task t under its model at the
    task's end; θ*_t is the model the server sends it next.  Only what was trained in the task's
    last round is guarded, on clients that took part in it.  A learnt task's F is small: the default
    λ is the best power of ten for the digits with a linear head, and no rule for other models.

    Source: EWC, Kirkpatrick et al. 2017, arXiv 1612.00796, eq. 3; departs: F_k stays with client k
    instead of being summed by the server.  With one θ* for all,
    Σ p_k (λ/2) Σ F_k (θ − θ*)² = (λ/2) Σ F (θ − θ*)² with F = Σ p_k F_k: the mean of the clients'
    objectives is pooled EWC, with the weights p_k of the round that pays the penalty and the Fisher
    information of every client's own model.
    """

    weight: Annotated[float, Ge(0)] = 1e6
    examples: Annotated[int, Ge(1)] = 128
    fisher: FisherKind = "true"

    def before_local(self, run: LocalRun) -> None:
        keep(run, {name: anchored(past, run.received) for name, past in _past(run).items()})

    def loss(self, run: LocalRun, batch: Batch, loss: Tensor) -> Tensor:
        past = _past(run)
        if not self.weight or not past:
            return loss
        return loss + self.weight * penalty(run.trainable, past.values())

    def task_end(self, run: LocalRun) -> None:
        found = measured(run, self.examples, self.fisher)
        keep(run, {f"{_NAME}{run.task_index}": Importance(fisher=found)})


def _past(run: LocalRun) -> dict[str, Importance]:
    """What is kept of earlier tasks, by name."""
    kept = run.state.importances.items()
    return {name: importance for name, importance in kept if name.startswith(_NAME)}
