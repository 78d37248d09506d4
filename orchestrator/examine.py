"""Is this an answer to what was asked?  Identity, form, shapes, counts, finiteness."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from orchestrator.learning import Evidences
from orchestrator.plans import Order
from orchestrator.shapes import assigned_shapes
from orchestrator.transport import failure
from strategies.compression.chain import Chain, decompress
from strategies.errors import WireError
from strategies.merging.coefficients import CURVATURE, SUMS
from strategies.types import (
    Assignment,
    ClientFailure,
    FailureReason,
    GroupName,
    GroupSpec,
    LowRank,
    ParamKey,
    Update,
)


def examined(
    result: Update | ClientFailure,
    order: Order,
    groups: Mapping[GroupName, GroupSpec],
    chain: Chain = (),
) -> Update | ClientFailure:
    """The update, decompressed, if it answers its order in every respect, else the failure."""
    if isinstance(result, ClientFailure):
        return result
    assignment = order.assignment
    expected = (assignment.assignment_id, assignment.client_id, assignment.plan_hash())
    found = (result.assignment_id, result.client_id, result.plan_hash)
    if found != expected:
        detail = f"answer {found}, expected {expected}"
        return failure(order, FailureReason.WRONG_PLAN, detail)
    shapes = assigned_shapes(assignment, groups)
    try:
        update = replace(result, delta=decompress(result.delta, chain, shapes))
    except WireError as error:
        return failure(order, FailureReason.MALFORMED, str(error))
    if detail := _wrong_shape(update, shapes) or _wrong_counts(update, assignment, groups):
        return failure(order, FailureReason.WRONG_SHAPE, detail)
    if detail := _not_finite(update):
        return failure(order, FailureReason.NOT_FINITE, detail)
    if detail := Evidences.unasked(update, assignment) or _wrong_curvature(update, order):
        return failure(order, FailureReason.WRONG_SHAPE, detail)
    if detail := _wrong_sums(update):
        return failure(order, FailureReason.MALFORMED, detail)
    return update


def _wrong_sums(update: Update) -> str:
    for score in update.scores:
        counts = (score.num_correct, score.num_lost, score.num_gained)
        flipped = score.num_lost + score.num_gained
        in_order = flipped <= score.num_compared <= score.num_examples
        if min(counts) < 0 or score.num_correct > score.num_examples or not in_order:
            return f"{score} counts more examples than there are"
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
    return ""


def _wrong_shape(update: Update, shapes: Mapping[ParamKey, tuple[int, ...]]) -> str:
    if not update.delta and not any(c.any() for c in update.num_examples.values()):
        return ""  # evaluated only
    for key in sorted(shapes.keys() - update.delta.keys()):
        return f"{key} is missing, expected shape {shapes[key]}"
    for key in sorted(update.delta.keys() - shapes.keys()):
        return f"{key} is not part of the plan"
    for key, value in update.delta.items():
        if value.shape != shapes[key] or value.dtype != np.float32:
            return f"{key} is {value.dtype} {value.shape}, expected float32 {shapes[key]}"
    return ""


def _wrong_counts(
    update: Update, assignment: Assignment, groups: Mapping[GroupName, GroupSpec]
) -> str:
    if update.num_examples.keys() - assignment.groups.keys():
        return f"example counts for {sorted(update.num_examples)}, expected the planned groups"
    for name, plan in assignment.groups.items():
        count = update.num_examples.get(name)
        if count is None:
            if update.delta:
                return f"no example count for group {name}"
            continue
        rows = {shape[0] for shape in groups[name].parts.values()}
        per_row = not isinstance(plan, LowRank) and len(rows) == 1 and count.shape == (min(rows),)
        if not (count.shape == () or per_row):
            return f"example count of {name} has shape {count.shape}, expected () or one per row"
        if (count < 0).any():
            return f"example count of {name} is negative"
    return ""


def _not_finite(update: Update) -> str:
    for key, value in [*update.delta.items(), *update.sketches.items()]:
        if not np.isfinite(value).all():
            return f"{key} holds {int((~np.isfinite(value)).sum())} values that are not finite"
    for group, values in update.statistics.items():
        for name, number in values.items():
            if not np.isfinite(number):
                return f"{name} of {group} is {number}"
    return ""
