"""How the loss depends on the size of every frozen pair's share of the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from torch import Tensor, nn

from clients.device import beside, host
from clients.model import IGNORED, losses_of
from strategies.errors import ModelError
from strategies.lora import Factors, merged_keys, num_merged
from strategies.merging.coefficients import CURVATURE, SUMS
from strategies.types import Array, GroupName, ParamKey

if TYPE_CHECKING:
    from clients.probing import ProbeRun

# A backward pass for each; of a hundred classes few are likely.
_CLASSES: Final = 8


def pair_curvature(run: ProbeRun) -> dict[ParamKey, Array]:
    """The sums that ``strategies/merging/coefficients.py`` describes, float32.

    The Fisher information of an example is Σ_c p_c ∇ℓ_c ∇ℓ_cᵀ over its 8 most likely classes c,
    their p_c made to sum to 1.  A causal LM has too many: there it is the empirical one, T ∇ℓ ∇ℓᵀ
    with ℓ the mean loss of the T actual tokens.
    """
    watch = _Watch(pairs=_pairs(run), scale=run.scale, device=run.allowed.device)
    counts = [len(pairs) for pairs in watch.pairs.values()]
    sums = np.zeros((SUMS + sum(counts), sum(counts)))
    with watch.on(run.model.module):
        for inputs, weights in zip(run.batches, run.weights, strict=True):
            if counts:
                sums += _sums(run, watch, inputs, weights)
    edges = pairwise(accumulate(counts, initial=0))
    return {
        ParamKey(group, CURVATURE): sums[:, start:end].astype(np.float32)
        for group, (start, end) in zip(watch.pairs, edges, strict=True)
    }


def _pairs(run: ProbeRun) -> dict[GroupName, list[Factors]]:
    """The frozen pairs of every group that has any, groups in order of their names."""
    groups = sorted({key.group for key in run.frozen})
    return {
        group: [
            Factors(*(run.frozen[key] for key in merged_keys(group, index)))
            for index in range(num_merged(run.frozen, group))
        ]
        for group in groups
    }


def _sums(run: ProbeRun, watch: _Watch, inputs: Mapping[str, Tensor], weights: Array) -> Array:
    """One batch's part, (SUMS + p, p)."""
    watch.start(len(weights))
    logits = run.model.logits(inputs)
    losses = losses_of(run.model, logits, inputs, run.allowed)
    gradient = watch.gradients(losses)
    curvature = np.zeros((gradient.shape[1], gradient.shape[1]))
    for labels, shares in _labellings(run, logits, inputs):
        relabelled = {**inputs, "labels": labels}
        rows = watch.gradients(losses_of(run.model, logits, relabelled, run.allowed))
        curvature += (rows * (weights * shares)[:, None]).T @ rows
    head = np.array([weights @ host(losses.double()), weights.sum()])
    above = np.repeat(head[:, None], gradient.shape[1], axis=1)
    return np.vstack([above, weights @ gradient, curvature])


def _labellings(
    run: ProbeRun, logits: Tensor, inputs: Mapping[str, Tensor]
) -> Iterator[tuple[Tensor, Array]]:
    """Labels for the batch, and how much the squared gradient of each example's loss counts."""
    labels = inputs["labels"]
    if run.model.base.recipe.task == "causal-lm":
        yield labels, host((labels[:, 1:] != IGNORED).sum(dim=1).double())
        return
    allowed = logits.detach().double().masked_fill(~run.allowed, -torch.inf)
    likely = allowed.softmax(dim=1).topk(min(_CLASSES, int(run.allowed.sum())), dim=1)
    shares = likely.values / likely.values.sum(dim=1, keepdim=True)
    for classes, share in zip(likely.indices.T, shares.T, strict=True):
        yield classes, host(share)


@dataclass(slots=True)
class _Watch:
    """Puts a factor of value 1 on every pair's share of every example's output.

    One factor per example: the gradient of summed losses is then each example's own.
    """

    pairs: dict[GroupName, list[Factors]]
    scale: float
    device: torch.device
    factors: dict[GroupName, Tensor] = field(default_factory=dict)  # (n, pairs) each

    def start(self, num_examples: int) -> None:
        """Fresh factors for a batch."""
        self.factors = {
            group: torch.ones(num_examples, len(pairs), device=self.device, requires_grad=True)
            for group, pairs in self.pairs.items()
        }

    def gradients(self, losses: Tensor) -> Array:
        """Every example's gradient (n, p), float64; the graph stays."""
        wanted = list(self.factors.values())
        found = torch.autograd.grad(losses.sum(), wanted, retain_graph=True, allow_unused=True)
        parts = [
            torch.zeros_like(factor) if grad is None else grad
            for factor, grad in zip(wanted, found, strict=True)
        ]
        return host(torch.cat(parts, dim=1).double())

    @contextmanager
    def on(self, module: nn.Module) -> Iterator[None]:
        """While open, the modules' outputs depend on the factors; their values do not change."""
        hooks = [
            module.get_submodule(group).register_forward_hook(_Share(self, group))
            for group in self.pairs
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


class _Share:
    """The hook of one module."""

    def __init__(self, watch: _Watch, group: GroupName) -> None:
        pairs = watch.pairs[group]
        self._watch, self._group = watch, group
        self._a = np.vstack([pair.a for pair in pairs])  # (Σr, d_in)
        self._b = watch.scale * np.hstack([pair.b for pair in pairs])
        self._ranks = torch.tensor([pair.rank for pair in pairs], device=watch.device)

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x, factors = args[0], self._watch.factors[self._group]
        if len(x) != len(factors):
            raise ModelError(
                f"{self._group} is fed {len(x)} rows for {len(factors)} examples, expected one "
                "entry of the first axis for each; leave it out of strategy.layer_selection"
            )
        change = (factors - 1).repeat_interleave(self._ranks, dim=1)  # (n, Σr)
        change = change.reshape(len(x), *[1] * (x.ndim - 2), -1)
        return output + ((x @ beside(x, self._a).T) * change) @ beside(x, self._b).T
