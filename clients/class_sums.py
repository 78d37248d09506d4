"""Sums over a client's examples, per class, for heads that are solved instead of trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from clients.device import host
from strategies.heads.moments import packed
from strategies.types import HEAD, Array, ParamKey

if TYPE_CHECKING:
    from clients.probing import ProbeRun


def class_counts(run: ProbeRun) -> dict[ParamKey, Array]:
    """Of each class, how many examples those looked at stand for and how many they are, (2, C)."""
    counts = np.zeros((2, len(run.allowed)))
    for inputs, weights in zip(run.batches, run.weights, strict=True):
        np.add.at(counts[0], host(inputs["labels"]), weights)
        np.add.at(counts[1], host(inputs["labels"]), 1.0)
    return {ParamKey(HEAD, "class-counts"): counts.astype(np.float32)}


def class_sums(run: ProbeRun) -> dict[ParamKey, Array]:
    """Per class that has examples, in ascending order, the sum of their pooled features (k, d)."""
    held = _held(run)
    sums: Array = np.zeros(())
    for targets, features in _rows(run, held, run.model.features):
        sums = sums + targets.T @ features
    return {ParamKey(HEAD, "class-sums"): sums.astype(run.probe.precision)}


def moments(run: ProbeRun) -> dict[ParamKey, Array]:
    """Second moments of what the head sees and the classes, as ``heads/moments.py`` packs them."""
    held = _held(run)
    pieces = (
        np.sqrt(targets.sum(axis=1, keepdims=True))
        * np.hstack([features, (targets > 0).astype(np.float64)])
        for targets, features in _rows(run, held, run.model.head_inputs)
    )
    width = run.trainable[ParamKey(HEAD, "weight")].shape[1]
    return {ParamKey(HEAD, "moments"): packed(pieces, width).astype(run.probe.precision)}


def _held(run: ProbeRun) -> Array:
    return np.unique(np.concatenate([host(inputs["labels"]) for inputs in run.batches]))


def _rows(
    run: ProbeRun, held: Array, features_of: Callable[[Mapping[str, Tensor]], Tensor]
) -> Iterator[tuple[Array, Array]]:
    """Batch by batch, weighted one-hot targets (n, k) and features (n, d), float64."""
    for inputs, weights in zip(run.batches, run.weights, strict=True):
        with torch.no_grad():
            features = host(features_of(inputs).double())
        hit = host(inputs["labels"])[:, None] == held[None, :]
        yield hit * weights[:, None], features
