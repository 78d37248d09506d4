"""DER++: remembered examples keep the answers they were remembered with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np
import torch
from annotated_types import Ge

from clients.methods.base import ClientMethod
from clients.methods.outputs import answers, remembered, rows_of, store
from clients.model import example_losses

if TYPE_CHECKING:
    from torch import Tensor

    from clients.training import Batch, LocalRun

_NAME = "derpp"


@dataclass(frozen=True, slots=True)
class DarkExperienceReplay(ClientMethod):
    """L + α·mean‖f(x′) − z′‖² + β·CE(f(x″), y″), x′ and x″ drawn apart from the memory.

    z′ are the logits of the model that trained on x′ first, taken at the end of that round.  Only
    classes that were answers then are compared.  β = 0 is DER.  A step has three forward passes, of
    the batch and of ``replay.share`` times as many remembered examples, twice.
    Source: DER++, Buzzega et al. 2020, arXiv 2004.07211, eq. 6; departs: examples enter the memory
    once per round, with that round's last model.  The distance is the sum over classes that eq. 6
    has; the authors' code divides by their number C, so that its α is C times this one.
    """

    remembers: ClassVar[bool] = True
    stores_logits: ClassVar[bool] = True
    splits: ClassVar[bool] = False  # draws from the memory once per batch
    alpha: Annotated[float, Ge(0)] = 0.3
    beta: Annotated[float, Ge(0)] = 0.5

    def loss(self, run: LocalRun, batch: Batch, loss: Tensor) -> Tensor:
        stored, count = remembered(run, _NAME), round(run.work.replay.share * len(batch.draw.new))
        ids = run.policy.draw(run.state.memory, count, run.memory_rng)
        known = ids[np.isin(ids, stored.ids)]
        if len(known):
            now = run.model.logits(run.tensors_of(known)).float()
            loss = loss + self.alpha * _distance(now, rows_of(stored, known, run.model.device))
            run.num_replayed += len(known)
        again = run.policy.draw(run.state.memory, count, run.memory_rng)
        if self.beta and len(again):
            replayed = example_losses(run.model, run.tensors_of(again), run.allowed).mean()
            loss = loss + self.beta * replayed
            run.num_replayed += len(again)
        return loss

    def after_local(self, run: LocalRun) -> None:
        run.remember()
        held = remembered(run, _NAME).only(run.state.memory.ids)
        fresh = np.setdiff1d(run.state.memory.ids, held.ids)
        store(run, _NAME, held.joined(answers(run, fresh)))


def _distance(now: Tensor, then: Tensor) -> Tensor:
    """Mean over examples of the squared distance, over the classes that were answers then."""
    compared = torch.isfinite(then)
    gaps = torch.where(compared, now - then.nan_to_num(neginf=0.0), 0.0)
    return gaps.square().sum(dim=1).mean()
