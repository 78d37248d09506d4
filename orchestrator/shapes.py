"""Which tensors an answer must hold, and how large it may be."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

from strategies.errors import StrategyError
from strategies.heads.moments import largest as largest_moments
from strategies.merging.coefficients import SUMS
from strategies.types import (
    HEAD,
    LORA_A,
    LORA_B,
    Assignment,
    Dense,
    GroupName,
    GroupPlan,
    GroupSpec,
    ParamKey,
)

# Header, scores, statistics and per-row counts of an honest answer fit in this many times over.
_SMALL_CHANGE_BYTES: Final = 2**20


def planned_shapes(
    plan: GroupPlan, spec: GroupSpec, kept: Sequence[str] = ()
) -> dict[str, tuple[int, ...]]:
    """The parts an update for ``plan`` must hold, with their shapes; not those the client keeps."""
    if isinstance(plan, Dense):
        return {part: shape for part, shape in spec.parts.items() if part not in kept}
    if spec.linear is None:
        raise StrategyError(f"group {spec.name!r} is {spec.kind}, LoRA needs a linear one")
    d_out, d_in = spec.linear
    shapes = dict[str, tuple[int, ...]]()
    if plan.train_a and LORA_A not in kept:
        shapes[LORA_A] = (plan.rank, d_in)
    if plan.train_b and LORA_B not in kept:
        shapes[LORA_B] = (d_out, plan.rank)
    return shapes


def assigned_shapes(
    assignment: Assignment, specs: Mapping[GroupName, GroupSpec]
) -> dict[ParamKey, tuple[int, ...]]:
    """All tensors an update for ``assignment`` must hold; none where nothing is trained."""
    if assignment.work is None:
        return {}
    return {
        ParamKey(name, part): shape
        for name, plan in assignment.groups.items()
        for part, shape in planned_shapes(plan, specs[name], assignment.kept.get(name, ())).items()
    }


def largest_reply(assignment: Assignment, specs: Mapping[GroupName, GroupSpec]) -> int:
    """Twice the uncompressed update, and room for everything else."""
    values = sum(math.prod(shape) for shape in assigned_shapes(assignment, specs).values())
    asked = assignment.probe.statistics if assignment.probe else ()
    if assignment.probe and "input-spectrum" in asked:
        linear = [specs[name].linear for name in assignment.groups]
        values += sum(assignment.probe.max_rank * shape[1] for shape in linear if shape)
    if "pair-curvature" in asked:
        linear_groups = sum(specs[name].linear is not None for name in assignment.groups)
        pairs = linear_groups * (assignment.task_index + 1)
        values += (SUMS + pairs) * pairs
    if "moments" in asked or "class-sums" in asked:
        num_classes, width = specs[HEAD].parts["weight"]
        values += largest_moments(width, num_classes) if "moments" in asked else num_classes * width
    return 2 * 4 * values + _SMALL_CHANGE_BYTES
