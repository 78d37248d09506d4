"""Evidence without training: gradients and inputs of the planned groups on a few batches.

Nothing of it stays: weights, gradients, random streams and training mode are as they were.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from clients.class_sums import class_counts, class_sums, moments
from clients.coefficients import pair_curvature
from clients.device import host
from clients.model import AdaptedModel, example_losses
from strategies.types import Array, GroupName, ParamKey, Probe, Tensors

Inputs = Mapping[str, Tensor]
Trainable = Mapping[ParamKey, nn.Parameter]
Scalars = dict[GroupName, dict[str, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeRun:
    """What a probe looks at: ``batches`` of inputs, classes ``allowed (C,)`` as in training.

    ``weights`` (n,) per batch are how many examples each stands for.  ``frozen`` are the merged
    pairs of the model, of which ``scale`` · B A is part of each weight.
    """

    probe: Probe
    model: AdaptedModel
    trainable: Trainable
    batches: Sequence[Inputs]
    weights: Sequence[NDArray[np.float64]]
    allowed: Tensor
    frozen: Tensors = field(default_factory=dict)
    scale: float = 1.0

    def loss(self, inputs: Inputs) -> Tensor:
        """Mean loss of a batch."""
        return example_losses(self.model, inputs, self.allowed).mean()

    def gradients(self, inputs: Inputs) -> dict[ParamKey, Tensor]:
        """The gradient of the mean loss; zero where the loss does not reach."""
        found = torch.autograd.grad(
            self.loss(inputs), list(self.trainable.values()), allow_unused=True
        )
        return {
            key: torch.zeros_like(parameter) if grad is None else grad
            for (key, parameter), grad in zip(self.trainable.items(), found, strict=True)
        }


def measure(run: ProbeRun) -> tuple[Scalars, dict[ParamKey, Array]]:
    """Statistics that are one number per group, and sketches that are arrays."""
    scalars, sketches = Scalars(), dict[ParamKey, Array]()
    with _untouched(run):
        mean = _mean_gradient(run) if set(run.probe.statistics) & set(_FROM_GRADIENT) else {}
        for name in run.probe.statistics:
            if name in _FROM_GRADIENT:
                values = _per_group(run, mean, _FROM_GRADIENT[name])
            elif name in _FROM_LOSS:
                values = _FROM_LOSS[name](run)
            else:
                sketches |= _SKETCHES[name](run)
                continue
            for group, value in values.items():
                scalars.setdefault(group, {})[name] = value
    return scalars, sketches


@contextmanager
def _untouched(run: ProbeRun) -> Iterator[None]:
    # Dropout would put its own noise into the evidence.
    with run.model.in_evaluation(), torch.random.fork_rng(devices=[]):
        yield


def _mean_gradient(run: ProbeRun) -> dict[ParamKey, Tensor]:
    total = {key: torch.zeros_like(p) for key, p in run.trainable.items()}
    for inputs in run.batches:
        for key, grad in run.gradients(inputs).items():
            total[key] += grad / len(run.batches)
    return total


def _energy(gradient: Tensor, parameter: Tensor) -> tuple[float, float]:
    return float(gradient.square().sum()), 1.0


def _signal_to_noise(gradient: Tensor, parameter: Tensor) -> tuple[float, float]:
    spread = float(gradient.std()) if gradient.numel() > 1 else 0.0
    return (float(gradient.mean()) ** 2 / spread if spread else 0.0), 1.0


def _relative(gradient: Tensor, parameter: Tensor) -> tuple[float, float]:
    return float(gradient.square().sum()), float(parameter.square().sum())


_FROM_GRADIENT: Final[dict[str, Callable[[Tensor, Tensor], tuple[float, float]]]] = {
    "gradient-energy": _energy,
    "signal-to-noise": _signal_to_noise,
    "relative-gradient": _relative,
}


def _per_group(
    run: ProbeRun,
    gradient: Mapping[ParamKey, Tensor],
    statistic: Callable[[Tensor, Tensor], tuple[float, float]],
) -> dict[GroupName, float]:
    """Sums over a group's tensors; where there is a denominator, the quotient of the sums."""
    above, below = dict[GroupName, float](), dict[GroupName, float]()
    for key, parameter in run.trainable.items():
        top, bottom = statistic(gradient[key], parameter.detach())
        above[key.group] = above.get(key.group, 0.0) + top
        below[key.group] = below.get(key.group, 0.0) + bottom
    divides = statistic is _relative
    return {g: v / below[g] if divides and below[g] else v for g, v in above.items()}


def _fisher(run: ProbeRun) -> dict[GroupName, float]:
    """Mean over examples of the squared gradient of each example's own loss, summed per group."""
    sums, num_examples = dict.fromkeys((key.group for key in run.trainable), 0.0), 0
    for inputs in run.batches:
        for row in range(len(inputs["labels"])):
            one = {name: value[row : row + 1] for name, value in inputs.items()}
            for key, gradient in run.gradients(one).items():
                sums[key.group] += float(gradient.square().sum())
            num_examples += 1
    return {group: total / num_examples for group, total in sums.items()}


def _descent(run: ProbeRun) -> dict[GroupName, float]:
    """−Σ g·Δθ: take one AdamW step, and the gradient on the same batch where it leads."""
    inputs, parameters = run.batches[0], list(run.trainable.values())
    before = [parameter.detach().clone() for parameter in parameters]
    try:
        for parameter, gradient in zip(parameters, run.gradients(inputs).values(), strict=True):
            parameter.grad = gradient
        torch.optim.AdamW(parameters, lr=run.probe.learning_rate, weight_decay=0.0).step()
        after = run.gradients(inputs)
        falls = dict[GroupName, float]()
        for (key, gradient), start in zip(after.items(), before, strict=True):
            moved = run.trainable[key].detach() - start
            falls[key.group] = falls.get(key.group, 0.0) - float((gradient * moved).sum())
        return falls
    finally:
        with torch.no_grad():
            for parameter, start in zip(parameters, before, strict=True):
                parameter.copy_(start)
                parameter.grad = None


_FROM_LOSS: Final[dict[str, Callable[[ProbeRun], dict[GroupName, float]]]] = {
    "fisher": _fisher,
    "descent": _descent,
}


def _input_spectrum(run: ProbeRun) -> dict[ParamKey, Array]:
    """Per linear group, its inputs' leading right singular vectors times their values (k, d_in).

    Stacked over clients these merge exactly: the Gram matrix of a stack is the sum of the parts'.
    """
    groups = list(dict.fromkeys(key.group for key in run.trainable if key.part.startswith("lora_")))
    watcher = _Watcher({group: [] for group in groups})
    hooks = [
        run.model.module.get_submodule(group).register_forward_hook(watcher.of(group))
        for group in groups
    ]
    try:
        with torch.no_grad():
            for inputs in run.batches:
                watcher.mask = inputs.get("attention_mask")
                run.loss(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return watcher.spectra(run.probe.max_rank)


_SKETCHES: Final[dict[str, Callable[[ProbeRun], dict[ParamKey, Array]]]] = {
    "input-spectrum": _input_spectrum,
    "pair-curvature": pair_curvature,
    "class-counts": class_counts,
    "class-sums": class_sums,
    "moments": moments,
}


@dataclass(slots=True)
class _Watcher:
    """Collects the inputs of modules, (tokens, d_in) each; padding is no data."""

    seen: dict[GroupName, list[Tensor]]
    mask: Tensor | None = None

    def of(self, group: GroupName) -> Callable[[nn.Module, tuple[Tensor, ...], object], None]:
        def keep(module: nn.Module, args: tuple[Tensor, ...], output: object) -> None:
            values = args[0].detach()
            if self.mask is not None and self.mask.shape == values.shape[:2]:
                values = values[self.mask.bool()]
            self.seen[group].append(values.reshape(-1, values.shape[-1]).clone())

        return keep

    def spectra(self, rank: int) -> dict[ParamKey, Array]:
        sketches, known = dict[ParamKey, Array](), list[tuple[Tensor, Array]]()
        for group, rows in self.seen.items():
            stack = torch.cat(rows)
            # Modules fed by one tensor, such as query, key and value, share its decomposition.
            found = next((f for s, f in known if s.shape == stack.shape and s.equal(stack)), None)
            if found is None:
                found = _leading(stack, rank)
                known.append((stack, found))
            sketches[ParamKey(group, "input-spectrum")] = found
        return sketches


def _leading(stack: Tensor, rank: int) -> Array:
    _, values, vectors = torch.linalg.svd(stack.float(), full_matrices=False)
    kept = min(rank, len(values))
    found: Array = host(values[:kept, None] * vectors[:kept])
    return np.ascontiguousarray(found)
