"""Nearest class mean on frozen features: the trivial baseline every method must beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from clients.methods.base import ClientMethod
from clients.methods.imprint import feature_sums, head_rows

if TYPE_CHECKING:
    from clients.training import LocalRun


@dataclass(frozen=True, slots=True)
class ClassMeans(ClientMethod):
    """Set each class's row of the head to the mean feature of the client's examples of the class.

    Rows are averaged by class counts on the server, so a round with every client gives the exact
    mean over all of them.  Use with ``model.head = "cosine"`` and ``learning.local_steps = 0``.
    Source: nearest class mean classifier, Mensink et al. 2013, with cosine distance.
    """

    def after_local(self, run: LocalRun) -> None:
        weight = head_rows(run)
        sums, counts = feature_sums(run, run.new_ids)
        with torch.no_grad():
            weight[counts > 0] = sums[counts > 0] / counts[counts > 0, None]
