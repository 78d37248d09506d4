"""Answers of the model at hand, remembered to be compared with later."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from clients.device import Device, host
from clients.state_store import Outputs
from strategies.errors import ModelError
from strategies.protocols import ExampleIds

if TYPE_CHECKING:
    from torch import Tensor

    from clients.training import LocalRun


def answers(run: LocalRun, ids: ExampleIds) -> Outputs:
    """Logits of the model as it is, without dropout; −inf where a class is no answer yet.

    Raises: ModelError for a causal LM, whose logits are as long as its vocabulary.
    """
    if run.recipe.task == "causal-lm":
        raise ModelError("remembered logits need a classifier, found model.task = 'causal-lm'")
    split, rows = run.dataset.train, dict[int, np.ndarray]()
    with run.model.in_evaluation(), torch.no_grad():
        for chunk in split.bucketed(ids, 128):
            logits = run.model.logits(run.tensors_of(chunk)).float()
            masked = host(logits.masked_fill(~run.allowed, -torch.inf))
            rows |= dict(zip(chunk.tolist(), masked, strict=True))
    width = len(run.dataset.label_names)
    values = np.stack([rows[i] for i in ids.tolist()]) if len(ids) else np.zeros((0, width))
    return Outputs(ids=ids, values=values.astype(np.float32))


def remembered(run: LocalRun, name: str) -> Outputs:
    """What a method has stored under its name; nothing at first."""
    width = len(run.dataset.label_names)
    nothing = Outputs(ids=np.zeros(0, np.int64), values=np.zeros((0, width), np.float32))
    return run.state.outputs.get(name, nothing)


def store(run: LocalRun, name: str, outputs: Outputs) -> None:
    """Keep ``outputs`` in the client's durable state."""
    run.state = replace(run.state, outputs={**run.state.outputs, name: outputs})


def rows_of(outputs: Outputs, ids: ExampleIds, device: Device) -> Tensor:
    """Stored logits (k, C) of ``ids``, in their order, on ``device``; all must be there."""
    places = {example: index for index, example in enumerate(outputs.ids.tolist())}
    return device.tensor(outputs.values[[places[i] for i in ids.tolist()]])
