"""Is this an answer to what was asked?  Identity, form, shapes, counts, finiteness."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Final

import numpy as np

from orchestrator.examine_claims import not_finite, wrong_claims, wrong_counts
from orchestrator.examine_evidence import wrong_evidence
from orchestrator.plans import Order
from orchestrator.shapes import assigned_shapes
from orchestrator.transport import failure
from strategies.compression.chain import Chain, decompress
from strategies.errors import WireError
from strategies.limits import MAX_VALUE
from strategies.types import (
    Assignment,
    ClientFailure,
    ClientId,
    ClientProfile,
    FailureReason,
    GroupName,
    GroupSpec,
    ParamKey,
    Update,
)

_NOBODY: Final[Mapping[ClientId, ClientProfile]] = MappingProxyType({})


def examined(
    result: Update | ClientFailure,
    order: Order,
    groups: Mapping[GroupName, GroupSpec],
    chain: Chain = (),
    clients: Mapping[ClientId, ClientProfile] = _NOBODY,
) -> Update | ClientFailure:
    """The update, decompressed, if it answers its order in every respect, else the failure.

    ``clients`` bound what may be counted; one that is not among them is believed.
    """
    assignment = order.assignment
    if detail := _of_another(result, assignment):
        return failure(order, FailureReason.WRONG_PLAN, detail)
    if isinstance(result, ClientFailure):
        return result
    client = clients.get(assignment.client_id)
    shapes = assigned_shapes(assignment, groups)
    try:
        update = replace(result, delta=decompress(result.delta, chain, shapes))
    except WireError as error:
        return failure(order, FailureReason.MALFORMED, str(error))
    if detail := _wrong_shape(update, shapes) or wrong_counts(update, assignment, groups, client):
        return failure(order, FailureReason.WRONG_SHAPE, detail)
    if detail := not_finite(update, MAX_VALUE):
        return failure(order, FailureReason.NOT_FINITE, detail)
    if detail := wrong_evidence(update, order, groups, client):
        return failure(order, FailureReason.WRONG_SHAPE, detail)
    if detail := wrong_claims(update, assignment, client):
        return failure(order, FailureReason.MALFORMED, detail)
    return update


def _of_another(result: Update | ClientFailure, assignment: Assignment) -> str:
    """Why this answers something else: an older order, another client's, another plan."""
    if isinstance(result, ClientFailure):
        named = (result.assignment_id, result.client_id)
        expected = (assignment.assignment_id, assignment.client_id)
        if named == expected or named == ("", assignment.client_id):
            return ""
        return f"failure {named} ({result.reason}: {result.detail}), expected {expected}"
    found = (result.assignment_id, result.client_id, result.plan_hash)
    wanted = (assignment.assignment_id, assignment.client_id, assignment.plan_hash())
    return "" if found == wanted else f"answer {found}, expected {wanted}"


def _wrong_shape(update: Update, shapes: Mapping[ParamKey, tuple[int, ...]]) -> str:
    for key in sorted(shapes.keys() - update.delta.keys()):
        return f"{key} is missing, expected shape {shapes[key]}"
    for key in sorted(update.delta.keys() - shapes.keys()):
        return f"{key} is not part of the plan"
    for key, value in update.delta.items():
        if value.shape != shapes[key] or value.dtype != np.float32:
            return f"{key} is {value.dtype} {value.shape}, expected float32 {shapes[key]}"
    return ""
