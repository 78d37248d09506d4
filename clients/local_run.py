"""A local training made ready: its examples, classes, memory and methods, from an assignment."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from clients.boundaries import SIGNALS, Boundaries, Given, Noticed
from clients.data import Shard, class_mask, classes_of
from clients.methods.base import ClientMethod
from clients.model.lower import Lower, values_below
from clients.state_store import ClientState
from clients.training import LocalRun
from clients.workshop import Workshop
from strategies.catalog import CLIENT_METHODS, REPLAY_POLICIES, build
from strategies.errors import ConfigError, Fault
from strategies.protocols import ExampleIds
from strategies.recipe import StreamRecipe
from strategies.rng import rng_for
from strategies.types import Assignment, StrategyChoice, Tensors, Work


def local_run(
    shop: Workshop, shard: Shard, assignment: Assignment, work: Work, state: ClientState
) -> LocalRun:
    """One client's local training, before its first step."""
    # torch's own stream feeds dropout only; it too belongs to this client and round alone.
    torch.manual_seed(assignment.seed)
    return LocalRun(
        task_index=assignment.task_index,
        work=work,
        recipe=shop.recipe.model,
        dataset=shop.dataset,
        model=shop.model,
        trainable=shop.model.trainable(assignment.groups),
        new_ids=_ids(shard, work, state),
        memory_task=max(work.tasks),
        known=classes_of(shop.dataset.tasks, assignment.met),
        boundaries=_boundaries(shop.recipe.stream, assignment.seed),
        allowed=_allowed(shop, shard, assignment, work, state),
        policy=build(REPLAY_POLICIES, work.replay.policy, key="replay.policy"),
        state=state,
        rng=rng_for(assignment.seed, "batches"),
        memory_rng=rng_for(assignment.seed, "memory"),
        kept=assignment.kept,
    )


def lower_of(run: LocalRun, tensors: Tensors, scale: float) -> Lower | None:
    """The part of the model that a round leaves alone, where what comes out of it is kept.

    That is where there is room and the round's steps pass through as many examples as there are to
    choose from, or half as many if the lower part is still the base's own, as it may stay for the
    next round.
    ``tensors`` are the state in the model.
    """
    border = run.model.border({key.group for key in run.trainable})
    values = values_below(run.model.base.description, border, tensors, scale)
    remembered = np.setdiff1d(run.state.memory.ids, run.new_ids)
    passes = run.work.steps * min(run.work.batch_size, len(run.new_ids))
    worth = len(run.new_ids) + len(remembered) <= passes * (1 if values else 2)
    if not (run.work.keeps and worth):
        return None
    # Cut by the plan alone: what memory happens to be free must not show in the bits.
    split, size = run.dataset.train, run.work.micro_batch_size or run.work.batch_size
    cut = replace(split, most_at_once=None).bucketed
    chunks = [*cut(run.new_ids, size), *cut(remembered, size)]
    return Lower.of(run.model, split, chunks, border=border, values=values)


def _ids(shard: Shard, work: Work, state: ClientState) -> ExampleIds:
    """What a round trains on."""
    if work.source == "memory":
        return state.memory.ids
    return np.concatenate([shard.train_ids(task) for task in work.tasks])


def _boundaries(stream: StreamRecipe, seed: int) -> Boundaries:
    if stream.boundaries == "given":
        return Given()
    return Noticed(
        signal=SIGNALS[stream.boundary_signal],
        jump=stream.boundary_jump,
        rng=rng_for(seed, "boundary"),
    )


def _allowed(
    shop: Workshop, shard: Shard, assignment: Assignment, work: Work, state: ClientState
) -> torch.Tensor:
    """Classes a round's loss sees, (C,): in one on memories alone, those that are remembered.

    A memory is small, and a class it holds nothing of could only be pushed down.
    """
    held = classes_allowed(shop, shard, (*assignment.met, *work.tasks))
    if work.source == "tasks":
        return held
    return held & shop.model.device.tensor(class_mask(state.memory.labels, len(held)))


def classes_allowed(shop: Workshop, shard: Shard, tasks: Sequence[int]) -> torch.Tensor:
    """Classes the client holds of the tasks it has met, (C,); others are not pushed down."""
    allowed = class_mask(shard.classes_seen(tasks), len(shop.dataset.label_names))
    return shop.model.device.tensor(allowed)


def capacity_of(shop: Workshop, shard: Shard, work: Work) -> int:
    """Examples the client's memory may hold."""
    budget = work.replay.capacity_bytes
    if budget is None:
        return work.replay.capacity
    split, logits = shop.dataset.train, 0
    if any(method_of(choice).stores_logits for choice in work.methods):
        logits = 4 * len(shop.dataset.label_names)
    size = split.mean_bytes(np.concatenate(shard.train).astype(np.int64)) + logits
    return int(budget / size) if size else 0


def method_of(choice: StrategyChoice) -> ClientMethod:
    """The method behind a catalog name.

    Raises: ConfigError for an unknown name or parameters it does not take.
    """
    if choice.name not in CLIENT_METHODS:
        known = ", ".join(sorted(CLIENT_METHODS))
        raise ConfigError("learning.methods", [Fault("name", repr(choice.name), f"one of {known}")])
    module, _, name = CLIENT_METHODS[choice.name].partition(":")
    method: type[ClientMethod] = getattr(importlib.import_module(module), name)
    return build({choice.name: method}, choice, key="learning.methods")
