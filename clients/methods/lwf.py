"""LwF: the model that knew the old classes labels the new examples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np
import torch
from annotated_types import Ge, Gt
from torch.nn import functional

from clients.data import class_mask
from clients.methods.base import ClientMethod
from clients.methods.outputs import answers, remembered, rows_of, store

if TYPE_CHECKING:
    from torch import Tensor

    from clients.training import Batch, LocalRun

_NAME = "lwf"


@dataclass(frozen=True, slots=True)
class LearningWithoutForgetting(ClientMethod):
    """L + α·T²·KL(softmax(z/T) ‖ softmax(f(x)/T)) over the classes the client knew before the task.

    z are the logits of the model the client received first in this task, on the task's own
    examples; nothing old is kept.  A client that knew no class before has nothing to lose.
    Source: LwF, Li and Hoiem 2017, arXiv 1606.09282; departs: the teacher is the global model of
    the client's first round in the task, asked once; head rows of classes that a client has no new
    examples of count for nothing in the mean, so that distillation moves all else but not them.
    """

    splits: ClassVar[bool] = False  # a mean over those with a teacher, not over all
    alpha: Annotated[float, Ge(0)] = 0.5
    temperature: Annotated[float, Gt(0)] = 2.0

    def task_start(self, run: LocalRun) -> None:
        taught = answers(run, run.new_ids)
        known = class_mask(run.known, taught.values.shape[1])
        taught.values[:, ~known] = -np.inf  # what the task brings is not the teacher's to say
        store(run, _NAME, taught)

    def loss(self, run: LocalRun, batch: Batch, loss: Tensor) -> Tensor:
        stored, ids = remembered(run, _NAME), batch.draw.new
        known = np.isin(ids, stored.ids)
        if not self.alpha or not known.any():
            return loss
        then = rows_of(stored, ids[known], run.model.device)
        if not torch.isfinite(then).any():
            return loss
        now = batch.logits[: len(ids)][run.model.device.tensor(known)]
        return loss + self.alpha * distillation(now, then, self.temperature)


def distillation(now: Tensor, then: Tensor, temperature: float) -> Tensor:
    """T²·KL over the classes that are finite in ``then``, mean over examples."""
    old = torch.isfinite(then[0])
    target = functional.softmax(then[:, old] / temperature, dim=1)
    log_now = functional.log_softmax(now[:, old].float() / temperature, dim=1)
    loss: Tensor = functional.kl_div(log_now, target, reduction="batchmean")
    return temperature**2 * loss
