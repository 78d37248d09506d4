"""Imprinted rows: a class nobody has trained yet starts at the mean feature of its examples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from clients.device import host
from clients.methods.base import ClientMethod
from strategies.errors import ModelError
from strategies.protocols import ExampleIds
from strategies.types import HEAD, ParamKey

if TYPE_CHECKING:
    from torch import Tensor

    from clients.training import LocalRun


@dataclass(frozen=True, slots=True)
class Imprint(ClientMethod):
    """Before the first step, set every head row that is still zero to the client's class mean.

    The head then knows a new class from the first step on instead of growing it from nothing.  Rows
    are averaged by class counts on the server like any other.  Needs ``model.head = "cosine"``, for
    which a mean feature is a sensible row.
    Source: weight imprinting, Qi et al. 2018, arXiv 1712.07136; departs: rows are means over what a
    client holds, averaged over clients, and are not scaled to unit length.
    """

    def before_local(self, run: LocalRun) -> None:
        weight = head_rows(run)
        untrained = host(torch.nonzero(weight.abs().sum(dim=1) == 0).flatten())
        labels = run.dataset.train.labels[run.new_ids]
        sums, counts = feature_sums(run, run.new_ids[np.isin(labels, untrained)])
        with torch.no_grad():
            weight[counts > 0] = sums[counts > 0] / counts[counts > 0, None]


def head_rows(run: LocalRun) -> torch.nn.Parameter:
    """The head's rows, (C, d).

    Raises: ModelError unless the run trains a cosine head.
    """
    weight = run.trainable.get(ParamKey(HEAD, "weight"))
    if weight is None or run.recipe.pooling == "model" or run.recipe.head != "cosine":
        found = f"pooling = {run.recipe.pooling!r}, head = {run.recipe.head!r}"
        raise ModelError(
            'class means as head rows need model.pooling "mean" or "cls", model.head "cosine" '
            f"and a trained head; found {found}"
        )
    return weight


def feature_sums(run: LocalRun, ids: ExampleIds) -> tuple[Tensor, Tensor]:
    """Per class, the sum of the features of ``ids`` (C, d) and how many there are (C,)."""
    split, rows = run.dataset.train, head_rows(run)
    sums, counts = torch.zeros_like(rows), torch.zeros_like(rows[:, 0])
    with torch.no_grad():
        for chunk in split.bucketed(ids, 128):
            labels = run.model.device.tensor(split.labels[chunk])
            sums.index_add_(0, labels, run.model.features(run.tensors_of(chunk)).to(sums.dtype))
            counts += torch.bincount(labels, minlength=len(counts))
    return sums, counts
