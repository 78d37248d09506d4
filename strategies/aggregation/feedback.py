"""Error feedback: what cutting to the server's rank throws away is offered again next round."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from strategies.aggregation.factored_sum import FactoredSum, cut_to_rank
from strategies.cores import side_by_side
from strategies.lora import Decomposition, Factors, keys_of
from strategies.types import Array, GroupName, ParamKey, State

_NOISE = float(np.finfo(np.float32).eps)  # of the largest singular value; below it is rounding


class Offer(NamedTuple):
    """The new sum of one group, and the factors it takes the place of."""

    mean: FactoredSum
    current: Factors


class Published(NamedTuple):
    """The groups' new factors, what is remembered, and the relative error of what is published."""

    tensors: dict[ParamKey, Array]
    state: State
    truncation: dict[GroupName, float]


def publish(state: State, offers: Mapping[GroupName, Offer]) -> Published:
    """Add what earlier rounds left over, publish the best of the server's rank, keep the rest.

    INVARIANT: published + residual = mean + last residual, up to what is added to ``lost``: the
    norm of the part that fits neither, for the residual has at most the server's rank itself.

    Groups are cut side by side, each by itself: to the same bits on any number of cores.
    """
    cuts = side_by_side(lambda group: _cut(state, group, *offers[group]), offers)
    old = {name for group in offers for name in _names(group)}
    memory = {name: value for name, value in state.items() if name not in old}
    tensors = dict[ParamKey, Array]()
    for group, cut in cuts.items():
        memory |= cut.memory
        tensors |= zip(keys_of(group), cut.factors, strict=True)
    return Published(tensors, memory, {group: cut.truncation for group, cut in cuts.items()})


class _Cut(NamedTuple):
    factors: Factors
    memory: State
    truncation: float


def _cut(state: State, group: GroupName, mean: FactoredSum, current: Factors) -> _Cut:
    left = residual_of(state, group)
    if left is not None:
        mean.add(left)
    parts = mean.leading(2 * current.rank)
    factors, truncation = cut_to_rank(parts, current, mean.discarded)
    memory = _remembered(state, group, parts, current.rank, mean.discarded)
    return _Cut(factors, memory, truncation)


def residual_of(state: State, group: GroupName) -> Factors | None:
    """What was merged but not published so far, or None if nothing is left over."""
    key_a, key_b, _ = _names(group)
    return Factors(state[key_a], state[key_b]) if key_a in state else None


def lost_of(state: State, group: GroupName) -> float:
    """Sum of the Frobenius norms of all that was neither published nor kept."""
    return float(state.get(_names(group)[2], 0.0))


def _names(group: GroupName) -> tuple[str, str, str]:
    return f"{group}|residual_A", f"{group}|residual_B", f"{group}|lost"


def _remembered(
    state: State, group: GroupName, parts: Decomposition, rank: int, discarded: float
) -> State:
    key_a, key_b, key_lost = _names(group)
    real = int(np.sum(parts.s > _NOISE * parts.s[:1]))
    end = max(rank, min(2 * rank, real))
    memory: State = {key_lost: np.array(lost_of(state, group) + discarded + parts.norm_from(end))}
    if end == rank:
        return memory
    a, b = parts.v[rank:end], parts.u[:, rank:end] * parts.s[rank:end]
    return {**memory, key_a: a.astype(np.float32), key_b: b.astype(np.float32)}
