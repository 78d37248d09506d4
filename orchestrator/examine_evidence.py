"""Statistics and sketches against the question: which, of what shape, and what they may say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Final

import numpy as np

from orchestrator.learning import Evidences
from orchestrator.plans import Order
from strategies.heads.moments import largest
from strategies.merging.coefficients import CURVATURE, SUMS
from strategies.types import (
    HEAD,
    Array,
    Assignment,
    ClientProfile,
    GroupName,
    GroupSpec,
    LowRank,
    ParamKey,
    Update,
)

_NUMBERS: Final = frozenset(
    {"gradient-energy", "signal-to-noise", "relative-gradient", "fisher", "descent"}
)
_SIGNED: Final = frozenset({"descent"})
_DRIFT: Final = frozenset({"squared", "values"})
_COUNTS: Final = "class-counts"
_FLOATS: Final = (np.dtype(np.float32), np.dtype(np.float16))


def wrong_evidence(
    update: Update,
    order: Order,
    groups: Mapping[GroupName, GroupSpec],
    client: ClientProfile | None,
) -> str:
    """What is wrong with what a probe measured or a training reported."""
    assignment = order.assignment
    return (
        Evidences.unasked(update, assignment)
        or _wrong_numbers(update, assignment)
        or _wrong_curvature(update, order)
        or _wrong_sketches(update, assignment, groups)
        or _wrong_class_counts(update, client)
    )


def _wrong_numbers(update: Update, assignment: Assignment) -> str:
    for group, values in update.statistics.items():
        if group not in assignment.groups:
            return f"statistics of {group}, which is not part of the plan"
        for name, value in values.items():
            drift = name in _DRIFT and assignment.work is not None
            if not drift and name not in _NUMBERS:
                return f"{name} of {group} as one number"
            if value < 0 and name not in _SIGNED:
                return f"{name} of {group} is {value:g}, expected 0 or more"
    return ""


def _wrong_sketches(
    update: Update, assignment: Assignment, groups: Mapping[GroupName, GroupSpec]
) -> str:
    for key, value in update.sketches.items():
        if value.dtype not in _FLOATS:
            return f"{key} is {value.dtype}, expected float32 or float16"
        if key.part != CURVATURE and not _fits(key, value, assignment, groups[key.group]):
            return f"{key} has shape {value.shape}, which is none of its kind"
    return ""


def _fits(key: ParamKey, value: Array, assignment: Assignment, spec: GroupSpec) -> bool:
    """Whether a sketch has a shape that its statistic can have."""
    plan, shape = assignment.groups[key.group], value.shape
    if key.part == "input-spectrum":
        most = assignment.probe.max_rank if assignment.probe else 0
        return bool(spec.linear and len(shape) == 2 and shape[1] == spec.linear[1]) and (
            0 < shape[0] <= most
        )
    if key.part in ("sensitivity", "component-norms"):
        rank = plan.rank if isinstance(plan, LowRank) else -1
        expected = (rank,) if key.part == "sensitivity" else (4, rank)
        return shape == expected and bool((value >= 0).all())
    if key.group != HEAD or len(spec.parts.get("weight", ())) != 2:
        return False
    num_classes, width = spec.parts["weight"]
    if key.part == _COUNTS:
        return shape == (2, num_classes)
    if key.part == "class-sums":
        return len(shape) == 2 and shape[0] <= num_classes and shape[1] == width
    moments = key.part == "moments" and len(shape) == 1
    return moments and 0 < shape[0] <= largest(width, num_classes)


def _wrong_class_counts(update: Update, client: ClientProfile | None) -> str:
    """Examples looked at are whole, no more than there are, and stand for some of their class."""
    counts = update.sketches.get(ParamKey(HEAD, _COUNTS))
    if counts is None:
        return ""
    stood_for, looked_at = counts.astype(np.float64)
    most = sum(client.num_train) if client else np.inf
    whole = (looked_at == np.floor(looked_at)).all() and (counts >= 0).all()
    if not whole or looked_at.sum() > most or ((stood_for > 0) != (looked_at > 0)).any():
        return f"{_COUNTS} of {looked_at.sum():g} examples, the client has {most:g}"
    return ""


def _wrong_curvature(update: Update, order: Order) -> str:
    """What is wrong with an answer about frozen pairs; it must have a column for each."""
    probe = order.assignment.probe
    if probe is None or CURVATURE not in probe.statistics:
        return ""
    keys = [ParamKey.parse(name) for name in order.holding.ranks]
    pairs = Counter(key.group for key in keys if key.part.startswith("merged_A."))
    for group, count in sorted(pairs.items()):
        value, shape = (
            update.sketches.get(ParamKey(group, CURVATURE)),
            (SUMS + pairs.total(), count),
        )
        if value is None or value.shape != shape:
            found = "nothing" if value is None else value.shape
            return f"{CURVATURE} of {group} is {found}, expected {shape}"
    answered = {key.group for key in update.sketches if key.part == CURVATURE}
    if strange := sorted(answered - pairs.keys()):
        return f"{CURVATURE} of {strange[0]}, which has no frozen pairs"
    return ""
