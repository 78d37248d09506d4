"""What the memory is asked for, and how what it holds fares under the model at hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clients.model import example_losses
from strategies.protocols import ExampleIds, ReplayMemory, Retrieving
from strategies.types import HEAD, Remembered

if TYPE_CHECKING:
    from clients.training import LocalRun

_CHUNK = 128


def recalled(run: LocalRun, new: ExampleIds, count: int) -> ExampleIds:
    """``count`` remembered examples to be replayed beside ``new`` ones, fewer if there are fewer.

    A policy that looks at candidates is told by how much a step on ``new`` would raise their loss.
    """
    memory, policy = run.state.memory, run.policy
    if not count or not isinstance(policy, Retrieving):
        return policy.draw(memory, count, run.memory_rng)
    candidates = policy.draw(memory, policy.candidates, run.memory_rng)
    if len(candidates) <= count or not len(new):
        return candidates[:count]
    return policy.choose(candidates, interference(run, new, candidates), count)


def interference(run: LocalRun, new: ExampleIds, candidates: ExampleIds) -> NDArray[np.float64]:
    """By how much one step of gradient descent on ``new`` would raise the candidates' losses, (c,).

    The trained tensors alone are moved, at the current learning rates, and moved back.
    """
    parameters = list(run.trainable.values())
    before = losses_on(run, candidates)
    gradients = mean_gradient(run, new, parameters)
    plan = run.work.optimization
    kept = [parameter.detach().clone() for parameter in parameters]
    with torch.no_grad():
        for key, parameter, gradient in zip(run.trainable, parameters, gradients, strict=True):
            peak = plan.head_learning_rate if key.group == HEAD else plan.learning_rate
            parameter.sub_(peak * run.rate_factor * gradient)
        after = losses_on(run, candidates)
        for parameter, value in zip(parameters, kept, strict=True):
            parameter.copy_(value)
    return after - before


def mean_gradient(
    run: LocalRun, ids: ExampleIds, parameters: Sequence[torch.nn.Parameter]
) -> list[Tensor]:
    """Of the mean loss on ``ids``, computed in parts as a step is; zero where it does not reach."""
    total = [torch.zeros_like(parameter) for parameter in parameters]
    for part in run.parts(ids):
        loss = example_losses(run.model, run.tensors_of(part), run.allowed).mean()
        found = torch.autograd.grad(loss, list(parameters), allow_unused=True)
        for summed, gradient in zip(total, found, strict=True):
            if gradient is not None:
                summed += len(part) / len(ids) * gradient
    return total


def losses_on(run: LocalRun, ids: ExampleIds) -> NDArray[np.float64]:
    """The loss of each of ``ids``, (n,), without dropout."""
    split, losses = run.dataset.train, dict[int, float]()
    with run.model.in_evaluation(), torch.no_grad():
        for chunk in split.bucketed(ids, _CHUNK):
            found = example_losses(run.model, run.tensors_of(chunk), run.allowed)
            losses |= zip(chunk.tolist(), found.tolist(), strict=True)
    return np.array([losses[example] for example in ids.tolist()], dtype=np.float64)


def measured(run: LocalRun) -> tuple[ReplayMemory, tuple[Remembered, ...]]:
    """The memory with its losses under the model at hand, and their sums by task."""
    memory = run.state.memory
    memory = memory.measured(losses_on(run, memory.ids))
    rises = memory.rises()
    sums = [
        Remembered(
            task_index=task,
            num_examples=int(np.sum(memory.tasks == task)),
            loss_sum=float(memory.losses[memory.tasks == task, 1].sum()),
            loss_rise=float(rises[memory.tasks == task].sum()),
        )
        for task in np.unique(memory.tasks).tolist()
    ]
    return memory, tuple(sums)
