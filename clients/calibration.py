"""How fast this device trains the base model and what that keeps in memory, by a few real steps."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from clients.data import Encoded
from clients.memory import saved_for_backward
from clients.model import AdaptedModel
from strategies.cost import CostModel
from strategies.protocols import ExampleIds
from strategies.types import Dense, RoundBudget

_EXAMPLES: Final = 4
_STEPS: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """``step_seconds`` of forward and backward pass on a small batch, and the speed that makes.

    ``activation_bytes`` are what the longest example looked at keeps for its backward pass.
    """

    step_seconds: float
    flops_per_second: float
    activation_bytes: int


def calibrated(model: AdaptedModel, split: Encoded, ids: ExampleIds, tokens: float) -> Calibration:
    """Take a few steps on ``ids``, which must not be empty, and leave no trace of them.

    The gradient is that of the first linear group, so that the backward pass goes all the way.
    ``tokens`` an image has; of texts those of the padded batch are counted.
    No weight moves, no gradient is left, random streams are as they were.
    """
    few, longest = ids[:_EXAMPLES], ids[split.lengths[ids].argmax()][None]
    first = next(group for group in model.base.description.groups if group.linear)
    with _training(model) as module:
        kept = _kept(model, split, longest)
        weight = module.get_submodule(first.name).get_parameter("weight")
        weight.requires_grad_(True)  # noqa: FBT003 - torch
        _warm_optimizer(weight)
        inputs = model.device.inputs(split.collate(few))
        seconds = [_timed(model, inputs, weight) for _ in range(1 + _STEPS)][1:]
    padded = float(inputs["input_ids"].shape[1]) if "input_ids" in inputs else tokens
    costs = CostModel(
        groups=model.base.description.groups,
        budget=RoundBudget(batch_size=len(few)),
        tokens_per_example=padded,
    )
    step = statistics.median(seconds)
    return Calibration(
        step_seconds=step,
        flops_per_second=costs.flops_per_step({first.name: Dense()}) / step,
        activation_bytes=kept,
    )


@contextmanager
def _training(model: AdaptedModel) -> Iterator[nn.Module]:
    """The base as it trains, dropout included; as it was afterwards."""
    module, gpus = model.module, [0] if model.device.on_gpu else []
    mode = module.training
    with torch.random.fork_rng(devices=gpus):
        model.apply({}, 1.0)
        wanted = [p.requires_grad for p in module.parameters()]
        module.train()
        for part in module.modules():
            if isinstance(part, nn.modules.batchnorm._BatchNorm):
                part.eval()  # its running means are weights of a kind
        try:
            yield module
        finally:
            module.train(mode)
            for parameter, needed in zip(module.parameters(), wanted, strict=True):
                parameter.requires_grad_(needed)


def _kept(model: AdaptedModel, split: Encoded, ids: ExampleIds) -> int:
    """Bytes a backward pass to every linear module would need, their inputs as LoRA does."""
    for group in model.base.description.groups:
        if group.linear:
            weight = model.module.get_submodule(group.name).get_parameter("weight")
            weight.requires_grad_(True)  # noqa: FBT003 - torch
    with saved_for_backward(model.module.parameters()) as saved:
        model.logits(model.device.inputs(split.collate(ids)))
    model.module.requires_grad_(False)  # noqa: FBT003 - torch
    return saved.total


def _timed(model: AdaptedModel, inputs: dict[str, Tensor], weight: nn.Parameter) -> float:
    start = time.perf_counter()
    torch.autograd.grad(model.logits(inputs).float().square().mean(), [weight])
    if model.device.on_gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _warm_optimizer(like: Tensor) -> None:
    """Bring in the optimizer's code, which counts among what a process holds before it trains."""
    other = nn.Parameter(torch.zeros(1, device=like.device))
    other.grad = torch.zeros_like(other)
    torch.optim.AdamW([other], fused=True).step()
