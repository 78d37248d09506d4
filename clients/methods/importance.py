"""How much the model's answers hang on each trained value, and what it costs to move it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from clients.device import beside, host
from clients.model import IGNORED
from clients.state_store import Importance
from strategies.types import HEAD, Array, ParamKey, Tensors

if TYPE_CHECKING:
    from torch import Tensor

    from clients.training import LocalRun
    from strategies.protocols import ExampleIds
    from strategies.rng import Rng

FisherKind = Literal["true", "empirical"]
"""Whether answers are drawn from the model or are those of the data."""


def fisher_of(run: LocalRun, ids: ExampleIds, kind: FisherKind) -> dict[ParamKey, Array]:
    """Mean over ``ids`` of (∂ log p(y|x)/∂θ)² for every trained tensor, in its shape.

    A classifier's y is one of the classes the client has held.  A causal LM's is an answer's tokens
    together, drawn one by one after those of the reference.  One backward pass per example.
    """
    parameters = list(run.trainable.values())
    sums = [torch.zeros_like(p, dtype=torch.float64) for p in parameters]
    for example in ids:
        likelihood = _log_likelihood(run, np.array([example]), kind)
        found = torch.autograd.grad(likelihood, parameters, allow_unused=True)
        for total, gradient in zip(sums, found, strict=True):
            if gradient is not None:
                total += gradient.double().square()
    return {
        key: host((total / max(len(ids), 1)).float())
        for key, total in zip(run.trainable, sums, strict=True)
    }


def measured(run: LocalRun, count: int, kind: FisherKind) -> dict[ParamKey, Array]:
    """The Fisher information on at most ``count`` of the client's new examples, drawn evenly.

    It is not scaled to a mean of its own: the answers of a client that holds a single class hang on
    nothing, and that is what its small values have to say in the mean over the clients.
    """
    return fisher_of(run, run.rng.permutation(run.new_ids)[:count], kind)


def penalty(
    trainable: Mapping[ParamKey, torch.nn.Parameter], importances: Collection[Importance]
) -> Tensor:
    """½ Σ F·(θ − θ*)², a scalar.

    Where ranks differ, the components that a tensor, its F and its θ* all have are compared.
    """
    total = torch.zeros((), device=next((p.device for p in trainable.values()), None))
    for importance in importances:
        for key, parameter in trainable.items():
            if key not in importance.anchors:
                continue
            fisher, anchor = importance.fisher[key], importance.anchors[key]
            sizes = zip(parameter.shape, fisher.shape, anchor.shape, strict=True)
            common = tuple(slice(min(each)) for each in sizes)
            gap = parameter[common].float() - beside(parameter, anchor[common])
            total = total + (beside(parameter, fisher[common]) * gap.square()).sum() / 2
    return total


def anchored(importance: Importance, received: Mapping[ParamKey, Tensor]) -> Importance:
    """With θ* as received for every tensor that has none yet.

    A head's rows that are still zero there belong to classes nobody has trained: their F is 0.
    """
    fresh = {
        key: host(received[key].float())
        for key in importance.fisher
        if key in received and key not in importance.anchors
    }
    fisher, rows = dict(importance.fisher), fresh.get(ParamKey(HEAD, "weight"))
    if rows is not None:
        trained = rows.any(axis=1)
        for key in (key for key in fresh if key.group == HEAD):
            fisher[key] = fisher[key] * trained.reshape(-1, *[1] * (fisher[key].ndim - 1))
    return replace(importance, fisher=fisher, anchors={**importance.anchors, **fresh})


def blended(old: Tensors, new: Tensors, gamma: float) -> dict[ParamKey, Array]:
    """γ·old + new, tensor by tensor; what one of them lacks counts as zero there."""
    joint = dict[ParamKey, Array]()
    for key in dict.fromkeys((*old, *new)):
        parts = [(gamma, old[key])] if key in old else []
        parts += [(1.0, new[key])] if key in new else []
        shape = np.max([value.shape for _, value in parts], axis=0)
        joint[key] = np.zeros(shape, dtype=np.float32)
        for factor, value in parts:
            joint[key][tuple(map(slice, value.shape))] += np.float32(factor) * value
    return joint


def keep(run: LocalRun, importances: Mapping[str, Importance]) -> None:
    """Put ``importances`` into the client's durable state, beside those of other names."""
    run.state = replace(run.state, importances={**run.state.importances, **importances})


def _log_likelihood(run: LocalRun, ids: ExampleIds, kind: FisherKind) -> Tensor:
    """The sum of log p(y|x) over the examples and, of a causal LM, their answers' tokens."""
    inputs = run.tensors_of(ids)
    logits, labels = run.model.logits(inputs).float(), inputs["labels"]
    if run.recipe.task == "causal-lm":
        answers = labels[:, 1:] != IGNORED
        logits, labels = logits[:, :-1][answers], labels[:, 1:][answers]  # (k, vocabulary), (k,)
    else:
        logits = logits.masked_fill(~run.allowed, -torch.inf)
    log_p = functional.log_softmax(logits, dim=1)
    if kind == "true":
        chances = host(log_p.double().exp())
        labels = run.model.device.tensor(_drawn(chances, run.rng))
    return log_p.gather(1, labels[:, None]).sum()


def _drawn(chances: NDArray[np.float64], rng: Rng) -> NDArray[np.int64]:
    """One column per row, (k,), each with the probability ``chances (k, n)`` gives it."""
    sums = chances.cumsum(axis=1)
    lots = rng.random((len(chances), 1)) * sums[:, -1:]
    drawn: NDArray[np.int64] = (lots >= sums).sum(axis=1)
    return drawn
