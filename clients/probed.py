"""A probe carried out: which examples it looks at, and the answer."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from clients import profile as device
from clients.answers import Clock, failed
from clients.data import Shard
from clients.probing import ProbeRun, measure
from clients.state_store import ClientState
from clients.workshop import Workshop
from strategies.lora import is_merged
from strategies.protocols import ExampleIds, ReplayMemory
from strategies.rng import rng_for
from strategies.types import Assignment, ClientFailure, FailureReason, Probe, Tensors, Update


def probe_run(
    shop: Workshop,
    shard: Shard,
    assignment: Assignment,
    state: ClientState,
    allowed: torch.Tensor,
    model: Tensors,
) -> ProbeRun | None:
    """What the assignment's probe looks at; None if the client holds nothing of it.

    ``model`` is the state that was applied.
    """
    probe = assignment.probe
    if probe is None:
        return None
    ids, weights = _examples(shard, probe, state.memory, assignment.seed)
    if not len(ids):
        return None
    split = shop.dataset.train
    place = {example: index for index, example in enumerate(ids.tolist())}
    chunks = list(split.bucketed(ids, probe.batch_size))
    return ProbeRun(
        probe=probe,
        model=shop.model,
        trainable=shop.model.trainable(assignment.groups),
        batches=[shop.model.device.inputs(split.collate(chunk)) for chunk in chunks],
        weights=[weights[[place[i] for i in chunk.tolist()]] for chunk in chunks],
        allowed=allowed,
        frozen={key: value for key, value in model.items() if is_merged(key)},
        scale=assignment.scale,
    )


def _examples(
    shard: Shard, probe: Probe, memory: ReplayMemory, seed: int
) -> tuple[ExampleIds, NDArray[np.float64]]:
    """Ids and how many examples each stands for: new ones for all new ones together."""
    held = np.concatenate([np.zeros(0, np.int64), *(shard.train_ids(task) for task in probe.tasks)])
    new = held
    if probe.batches is not None:
        new = rng_for(seed, "probe").permutation(held)[: probe.batches * probe.batch_size]
    weights = np.full(len(new), len(held) / max(len(new), 1))
    if not probe.remembered:
        return new, weights
    past = ~np.isin(memory.ids, held)
    return (
        np.concatenate([new, memory.ids[past]]),
        np.concatenate([weights, represented(memory)[past]]),
    )


def represented(memory: ReplayMemory) -> NDArray[np.float64]:
    """How many of the offered examples each kept one stands for: its group's offered per kept."""
    groups = list(zip(memory.tasks.tolist(), memory.labels.tolist(), strict=True))
    offered = {(task, label): count for task, label, count in memory.offered.tolist()}
    return np.array([offered[group] / groups.count(group) for group in groups], dtype=np.float64)


def probed(
    run: ProbeRun | None, assignment: Assignment, update: Update, clock: Clock
) -> Update | ClientFailure:
    """The answer to a probe, ``update`` with what was measured."""
    if run is None:
        tasks = assignment.probe.tasks if assignment.probe else ()
        detail = f"no training examples of tasks {tasks}"
        return failed(assignment, FailureReason.NO_EXAMPLES, detail)
    statistics, sketches = measure(run)
    clock.lap("probe")
    return replace(
        update,
        statistics=statistics,
        sketches=sketches,
        seconds=clock.seconds(),
        peak_memory_bytes=device.peak_memory_bytes(),
    )
