"""The parts of a client's answer: counts, drift, times, and what went wrong."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from clients import profile as device
from clients.training import LocalRun
from strategies.types import (
    HEAD,
    Assignment,
    ClientFailure,
    FailureReason,
    GroupName,
    Score,
    Tensors,
    Update,
)


@dataclass(slots=True)
class Clock:
    """Splits a client's time by phase, in seconds."""

    start: float
    laps: dict[str, float] = field(default_factory=dict)
    last: float = 0.0

    def __post_init__(self) -> None:
        self.last = self.start

    def lap(self, phase: str) -> None:
        now = time.monotonic()
        self.laps[phase] = now - self.last
        self.last = now

    def seconds(self) -> dict[str, float]:
        return self.laps | {"compute": time.monotonic() - self.start}


def example_counts(assignment: Assignment, run: LocalRun) -> dict[GroupName, NDArray[np.int64]]:
    """Aggregation weights: all examples for shared groups, per class for the head's rows.

    Where anything was replayed, its classes count with what the memory holds of them and what of it
    a method has settled on: those rows were trained too.  Rows that only saw other classes'
    examples were pushed away and nothing else; they count for nothing, as without a memory.
    """
    total = np.array(len(run.new_ids), dtype=np.int64)
    counts = dict.fromkeys(assignment.groups, total)
    rows_are_classes = run.recipe.pooling != "model" and run.recipe.head != "simplex"
    if HEAD in counts and rows_are_classes:
        replayed = [run.state.memory.ids, *run.state.chosen.values()] if run.num_replayed else []
        held = np.concatenate([run.new_ids, *replayed])
        labels = run.dataset.train.labels[np.unique(held)]
        counts[HEAD] = np.bincount(labels, minlength=len(run.dataset.label_names)).astype(np.int64)
    return counts


def drift_of(sent: Tensors, trained: Tensors) -> dict[GroupName, dict[str, float]]:
    """Per group, the squared length of what local training moved, and how many values it has."""
    drift = dict[GroupName, dict[str, float]]()
    for key, value in trained.items():
        entry = drift.setdefault(key.group, {"squared": 0.0, "values": 0.0})
        entry["squared"] += float(np.sum((value - sent[key]) ** 2, dtype=np.float64))
        entry["values"] += value.size
    return drift


def metrics_of(run: LocalRun, loss: float) -> dict[str, float]:
    """What a training is booked with; no loss where no step was taken.

    ``accepted`` is the share of the task's examples the client answers in its own words.
    """
    metrics = {
        "num_examples": float(len(run.new_ids)),
        "steps": float(run.work.steps),
        "replayed": float(run.num_replayed),
        "new": float(run.num_new),
        "memory": float(len(run.state.memory.ids)),
        "step_memory_bytes": float(run.step_memory_bytes),
    }
    if run.state.targets is not None:
        metrics["accepted"] = len(run.state.targets.ids) / len(run.new_ids)
    return metrics | run.noted | ({"loss": loss} if run.work.steps else {})


def blank_update(assignment: Assignment, scores: tuple[Score, ...], clock: Clock) -> Update:
    """An answer that holds scores alone, for training or a probe to fill in."""
    return Update(
        assignment_id=assignment.assignment_id,
        client_id=assignment.client_id,
        plan_hash=assignment.plan_hash(),
        delta={},
        num_examples={},
        scores=scores,
        seconds=clock.seconds(),
        peak_memory_bytes=device.peak_memory_bytes(),
    )


def failed(assignment: Assignment, reason: FailureReason, detail: str) -> ClientFailure:
    """The answer of a client that cannot do what it was asked."""
    return ClientFailure(
        assignment_id=assignment.assignment_id,
        client_id=assignment.client_id,
        reason=reason,
        detail=detail,
    )
