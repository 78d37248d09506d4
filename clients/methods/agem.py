"""A-GEM: no step may raise the memory's loss to first order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from clients.methods.base import ClientMethod
from clients.recall import mean_gradient

if TYPE_CHECKING:
    from torch import Tensor

    from clients.training import LocalRun


@dataclass(frozen=True, slots=True)
class AveragedGem(ClientMethod):
    """g ← g − (⟨g, g_ref⟩/⟨g_ref, g_ref⟩)·g_ref where ⟨g, g_ref⟩ < 0, over all trained tensors.

    g_ref is the gradient on a batch drawn from the client's memory.  Twice the gradients of plain
    fine-tuning.
    Source: A-GEM, Chaudhry et al. 2019, arXiv 1812.00420, eq. 11; departs: the memory is the
    configured replay policy's.
    """

    remembers: ClassVar[bool] = True

    def grad(self, run: LocalRun) -> None:
        ids = run.policy.draw(run.state.memory, run.work.batch_size, run.memory_rng)
        if not len(ids):
            return
        run.num_replayed += len(ids)
        trained = [p for p in run.trainable.values() if p.grad is not None]
        reference = mean_gradient(run, ids, trained)
        project([p.grad for p in trained if p.grad is not None], reference)

    def after_local(self, run: LocalRun) -> None:
        run.remember()


def project(gradients: list[Tensor], reference: list[Tensor]) -> None:
    """Take the conflict with ``reference`` out of ``gradients``, in place."""
    inner = sum(torch.sum(g * r) for g, r in zip(gradients, reference, strict=True))
    square = sum(torch.sum(r * r) for r in reference)
    if inner >= 0 or square == 0:
        return
    for gradient, other in zip(gradients, reference, strict=True):
        gradient.sub_(inner / square * other)
