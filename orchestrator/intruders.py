"""Intruder dimensions of a whole state, group by group; pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from threadpoolctl import threadpool_limits

from strategies.intruders import num_intruders
from strategies.lora import whole_factors
from strategies.types import Array, GroupName, GroupSpec, ParamKey, Tensors


def inspected_groups(specs: Iterable[GroupSpec], tensors: Tensors) -> tuple[GroupName, ...]:
    """The groups whose base weight it takes: those with a low-rank update."""
    return tuple(
        spec.name for spec in specs if spec.linear and whole_factors(tensors, spec.name) is not None
    )


def count_intruders(
    specs: Mapping[GroupName, GroupSpec],
    tensors: Tensors,
    base_values: Tensors,
    scale: float,
) -> int:
    """Summed over the groups with a low-rank update.

    ``base_values`` must hold the base's own weights of these groups.  One BLAS thread, so that the
    count does not depend on the machine's cores.
    """
    total = 0
    with threadpool_limits(limits=1, user_api="blas"):
        for name in inspected_groups(specs.values(), tensors):
            factors = whole_factors(tensors, name)
            base = _oriented(specs, name, base_values[ParamKey(name, "weight")])
            total += num_intruders(base, factors, scale) if factors else 0
    return total


def _oriented(specs: Mapping[GroupName, GroupSpec], name: GroupName, weight: Array) -> Array:
    """The weight as (d_out, d_in).

    GPT-2's layers keep theirs the other way round.  Of a square one that cannot be seen, but a
    model's layers are all of a kind.
    """
    others = [s for s in specs.values() if s.linear and s.linear[0] != s.linear[1]]
    turned = any(spec.parts["weight"] != spec.linear for spec in others)
    return weight.T if turned else weight
