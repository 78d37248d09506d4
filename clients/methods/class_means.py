"""Nearest class mean on frozen features: the trivial baseline every method must beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from clients.methods.base import ClientMethod
from strategies.errors import ModelError
from strategies.types import HEAD, ParamKey

if TYPE_CHECKING:
    from clients.training import LocalRun


@dataclass(frozen=True, slots=True)
class ClassMeans(ClientMethod):
    """Set each class's row of the head to the mean feature of the client's examples of the class.

    Rows are averaged by class counts on the server, so a round with every client gives the exact mean
    over all of them.  Use with ``model.head = "cosine"`` and ``local_steps = 0``.
    Source: nearest class mean classifier, Mensink et al. 2013, with cosine distance.
    """

    def after_local(self, run: LocalRun) -> None:
        weight = run.trainable.get(ParamKey(HEAD, "weight"))
        if weight is None or run.recipe.pooling == "model":
            raise ModelError('class-means needs model.pooling "mean" or "cls" and a trained head')
        ids = run.new_ids
        labels = torch.from_numpy(run.dataset.train.labels[ids])
        sums = torch.zeros_like(weight)
        with torch.no_grad():
            for chunk in run.dataset.train.bucketed(ids, 128):
                features = run.model.features(run.tensors_of(chunk))
                sums.index_add_(0, torch.from_numpy(run.dataset.train.labels[chunk]), features)
            present, counts = labels.unique(return_counts=True)
            weight[present] = sums[present] / counts[:, None]
