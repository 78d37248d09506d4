"""The local loop: a few optimizer steps on one client's own examples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clients.boundaries import Boundaries, Given
from clients.memory import saved_for_backward
from clients.model import AdaptedModel, losses_of
from clients.model.lower import Lower
from clients.recall import measured
from clients.state_store import ClientState
from strategies.errors import ModelError
from strategies.protocols import ExampleIds, Offer, ReplayPolicy, Weighing
from strategies.recipe import ModelRecipe
from strategies.rng import Rng
from strategies.types import HEAD, GroupName, Optimization, ParamKey, Remembered, Tensors, Work

if TYPE_CHECKING:
    from clients.data import Dataset
    from clients.methods.base import ClientMethod


Weights = NDArray[np.float64]


class Draw(NamedTuple):
    """The example ids of one step: of the tasks at hand, and from the memory."""

    new: ExampleIds
    replayed: ExampleIds


@dataclass(frozen=True, slots=True)
class Batch:
    """One step's examples, new ones first, as the model's inputs, and what it makes of them.

    ``logits`` (n, C) or, of a causal LM, (n, t, vocabulary), with their graph.
    """

    draw: Draw
    inputs: Mapping[str, Tensor]
    logits: Tensor


@dataclass(slots=True, kw_only=True)
class LocalRun:
    """One client's local training, as its methods see it.

    ``new_ids`` are the client's examples of the tasks at hand, ``known`` the classes (k,) that came
    to it before; ``allowed (C,)`` marks the classes it has ever held, the only ones its loss may
    push; ``task_index`` is the stage of the run, ``memory_task`` the number under which examples
    are remembered; where the client notices ``boundaries`` itself, both are its own count of tasks.
    ``noted`` goes into its answer's metrics.  ``kept`` are parts that are the client's own;
    ``step`` counts the steps of this round and ``rate_factor`` is the share of the peak learning
    rate it is taken at; ``received`` are the trainable tensors as they came, ``frozen`` the merged
    pairs of the state, which nobody trains; ``remembered`` is how the memory fared under what was
    received.  ``lower`` is the part of the model below all that is trained, where what comes out of
    it is kept.
    Methods may change ``state`` and ``num_replayed``.
    """

    task_index: int
    work: Work
    recipe: ModelRecipe
    dataset: Dataset
    model: AdaptedModel
    trainable: Mapping[ParamKey, torch.nn.Parameter]
    new_ids: ExampleIds
    allowed: Tensor
    policy: ReplayPolicy
    state: ClientState
    rng: Rng
    memory_rng: Rng
    memory_task: int
    known: NDArray[np.int64]
    boundaries: Boundaries = field(default_factory=Given)
    kept: Mapping[GroupName, tuple[str, ...]] = field(default_factory=dict)
    frozen: Tensors = field(default_factory=dict)
    lower: Lower | None = None
    step: int = 0
    rate_factor: float = 1.0
    received: Mapping[ParamKey, Tensor] = field(default_factory=dict)
    remembered: tuple[Remembered, ...] = ()
    num_replayed: int = 0
    num_new: int = 0  # new examples that steps were taken on, counted each time
    step_memory_bytes: int = 0  # activations, gradients and moments of the first step
    used: set[int] = field(default_factory=set)  # new examples trained on so far
    noted: dict[str, float] = field(default_factory=dict)

    def tensors_of(self, ids: ExampleIds) -> dict[str, Tensor]:
        """The model's inputs for ``ids``, padded to the longest, with chosen targets in place.

        And with what comes out of the frozen lower part, where that is kept.
        """
        split, targets = self.dataset.train, self.state.targets
        answers = targets.of(ids) if targets else {}
        if answers:
            return self.model.device.inputs(split.collate_answered(ids, answers))
        below = self.lower.inputs(ids) if self.lower else {}
        return self.model.device.inputs(split.collate(ids)) | below

    def parts(self, ids: ExampleIds) -> list[ExampleIds]:
        """``ids`` as they are computed: at once, or in parts of ``work.micro_batch_size``."""
        size = self.work.micro_batch_size or max(len(ids), 1)
        return [ids[at : at + size] for at in range(0, len(ids), size)]

    def remember(self) -> None:
        """Offer the memory what was trained on for the first time in this task, in id order."""
        state = self.state
        fresh = np.setdiff1d(np.array(sorted(self.used), dtype=np.int64), state.offered)
        labels = self.dataset.train.labels[fresh].astype(np.int64)
        offer = Offer(ids=fresh, labels=labels, task=self.memory_task)
        memory = self.policy.admit(state.memory, offer, self.memory_rng)
        memory = memory.with_losses_of(state.memory)
        offered = np.union1d(state.offered, fresh)
        self.state = replace(state, memory=memory, offered=offered)


def train(run: LocalRun, methods: Sequence[ClientMethod]) -> float:
    """Carry out ``run.work`` on the model in place; the mean loss, NaN without steps.

    The optimizer is fresh: the server's merge may have rotated the factors its moments belong to.
    Raises: ModelError for parts of batches where a method needs whole ones.
    """
    if run.work.micro_batch_size and (whole := [m for m in methods if not m.splits]):
        name = type(whole[0]).__name__
        raise ModelError(f"{name} needs whole batches, the plan has micro-batches; leave one out")
    run.received = {key: p.detach().clone() for key, p in run.trainable.items()}
    if run.work.replay.measured:
        memory, run.remembered = measured(run)
        run.state = replace(run.state, memory=memory)
    if run.work.source == "memory":
        losses = _steps(run, methods, run.new_ids)
        run.num_replayed, run.num_new = run.num_new, 0
        return float(np.mean(losses)) if losses else math.nan
    return _on_tasks(run, methods)


def _on_tasks(run: LocalRun, methods: Sequence[ClientMethod]) -> float:
    run.boundaries.open(run, methods)
    ids = run.new_ids
    for method in methods:
        ids = method.select(run, ids)
    for method in methods:
        method.before_local(run)
    losses = _steps(run, methods, ids) if run.work.steps else []
    for method in methods:
        method.after_local(run)
    run.boundaries.close(run, methods)
    return float(np.mean(losses)) if losses else math.nan


def _steps(run: LocalRun, methods: Sequence[ClientMethod], ids: ExampleIds) -> list[float]:
    work, losses = run.work, list[float]()
    parameters = list(run.trainable.values())
    optimizer = _optimizer(run.trainable, work.optimization)
    base_rates = [group["lr"] for group in optimizer.param_groups]
    run.model.module.train()
    run.model.checkpoint(on=work.checkpointing)
    for step, new in enumerate(_batches(ids, run.dataset.train.lengths, work, run.rng)):
        run.step = step
        progress = (work.first_step + step) / work.total_steps
        run.rate_factor = rate_factor(work.optimization, progress)
        for group, rate in zip(optimizer.param_groups, base_rates, strict=True):
            group["lr"] = rate * run.rate_factor
        losses.append(_one_step(run, methods, new, optimizer, parameters))
    run.model.checkpoint(on=False)
    run.model.module.eval()
    return losses


def _one_step(
    run: LocalRun,
    methods: Sequence[ClientMethod],
    new: ExampleIds,
    optimizer: torch.optim.Optimizer,
    parameters: list[torch.nn.Parameter],
) -> float:
    draw = Draw(new, new[:0])
    for method in methods:
        draw = method.batch(run, draw)
    optimizer.zero_grad(set_to_none=True)
    loss, count, at = 0.0, sum(map(len, draw)), 0
    weights = _weights(run, draw)
    for ids in run.parts(np.concatenate(draw)):
        part = Draw(draw.new[at : at + len(ids)], ids[max(len(draw.new) - at, 0) :])
        batch = Batch(part, inputs := run.tensors_of(ids), _logits(run, inputs, parameters))
        share = len(ids) / count
        loss += share * _backward(run, methods, batch, weights[at : at + len(ids)], share)
        at += len(ids)
    for method in methods:
        method.grad(run)
    torch.nn.utils.clip_grad_norm_(parameters, run.work.optimization.max_grad_norm)
    optimizer.step()
    for method in methods:
        method.after_step(run)
    run.num_new += len(draw.new)
    run.used.update(draw.new.tolist())
    return loss


def _backward(
    run: LocalRun, methods: Sequence[ClientMethod], batch: Batch, weights: Weights, share: float
) -> float:
    """Add the gradient of a part's loss, of which the batch's is the mean; the part's loss."""
    losses = losses_of(run.model, batch.logits, batch.inputs, run.allowed)
    if len(batch.draw.replayed) and isinstance(run.policy, Weighing):
        losses = losses * run.model.device.tensor(weights).float()
    loss = losses.mean()
    for method in methods:
        loss = method.loss(run, batch, loss)
    (loss * share if share < 1 else loss).backward()  # type: ignore[no-untyped-call]  # torch
    return loss.item()


def _weights(run: LocalRun, draw: Draw) -> Weights:
    """A factor for each example of a batch, (n,); 1 for what is not in the memory."""
    memory, policy = run.state.memory, run.policy
    factors = np.ones(len(draw.new) + len(draw.replayed))
    held = np.flatnonzero(np.isin(draw.replayed, memory.ids))
    if len(held) and isinstance(policy, Weighing):
        factors[len(draw.new) + held] = policy.weights(memory, draw.replayed[held])
    return factors


def _logits(
    run: LocalRun, inputs: Mapping[str, Tensor], parameters: list[torch.nn.Parameter]
) -> Tensor:
    """The forward pass; the first one also measures what its backward pass will hold on to.

    With checkpointing that is less than the backward pass takes, which keeps a block's again.
    """
    if run.step_memory_bytes:
        return run.model.logits(inputs)
    with saved_for_backward(run.model.module.parameters()) as saved:
        logits = run.model.logits(inputs)
    copies = 3  # of a trained value: its gradient and AdamW's two moments
    run.step_memory_bytes = saved.total + copies * sum(p.nbytes for p in parameters)
    return logits


def _optimizer(
    trainable: Mapping[ParamKey, torch.nn.Parameter], plan: Optimization
) -> torch.optim.Optimizer:
    head = [p for key, p in trainable.items() if key.group == HEAD]
    rest = [p for key, p in trainable.items() if key.group != HEAD]
    groups = [
        {"params": rest, "lr": plan.learning_rate},
        {"params": head, "lr": plan.head_learning_rate},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], weight_decay=plan.weight_decay, fused=True
    )


def _batches(
    ids: ExampleIds, lengths: NDArray[np.int64], work: Work, rng: Rng
) -> NDArray[np.int64]:
    """``work.steps`` batches out of shuffled passes over ``ids``, each of examples alike in length.

    The round's draw is cut by length, so that little is padded, and the cuts come in random order.
    """
    size = min(work.batch_size, len(ids))
    needed = work.steps * size
    passes = [rng.permutation(ids) for _ in range(-(-needed // len(ids)))]
    drawn = np.concatenate(passes)[:needed]
    by_length = drawn[np.argsort(lengths[drawn], kind="stable")].reshape(work.steps, size)
    return rng.permuted(rng.permutation(by_length, axis=0), axis=1)


def rate_factor(plan: Optimization, progress: float) -> float:
    """Share of the peak learning rate at ``progress`` through the task, in [0, 1)."""
    match plan.schedule:
        case "constant":
            return 1.0
        case "linear":
            return 1.0 - progress
        case "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * progress))
        case "one-cycle":
            return _one_cycle(progress)


def _one_cycle(progress: float, warm_up: float = 0.3, start: float = 0.04) -> float:
    """Cosine up from ``start`` over the first ``warm_up``, cosine down to 0 after.

    Source: Smith and Topin, arXiv 1708.07120, with torch's default shape.
    """
    if progress < warm_up:
        return start + (1 - start) * 0.5 * (1 - math.cos(math.pi * progress / warm_up))
    return 0.5 * (1 + math.cos(math.pi * (progress - warm_up) / (1 - warm_up)))
