"""Points on the line between two states, low-rank groups in the space of B·A; shared by mergers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np

from strategies.aggregation.factored_sum import FactoredSum
from strategies.aggregation.feedback import Offer, publish
from strategies.lora import Factors, factors_of, is_factor, keys_of
from strategies.protocols import Merged
from strategies.types import HEAD, Array, GroupName, ParamKey, State, Tensors

_START: Final = "start|"


def between(
    start: Tensors, end: Tensors, weights: Mapping[GroupName, float], state: State
) -> Merged:
    """The state start + w · (end − start), per group with a weight w; other groups as in ``end``.

    What ``start`` lacks is zero there.  Low-rank groups: the stacked products, cut to the rank of
    ``end`` by SVD; what is cut goes into ``state`` and is offered again the next time (see
    aggregation ``feedback``), its share is reported.  w = 0 and w = 1 are the ends themselves.

    A head's row that is all zero at the start belongs to a class that was not there: it stays as in
    ``end``, for half of a new row is no row between two models but a worse classifier.
    """
    tensors, offers = dict(end), dict[GroupName, Offer]()
    for key, value in end.items():
        if key.group in weights and not is_factor(key):
            tensors[key] = _dense(key, start.get(key), value, weights[key.group])
    for group in dict.fromkeys(key.group for key in end if is_factor(key)):
        before, after = factors_of(start, group), factors_of(end, group)
        weight = weights.get(group, 1.0)
        if after is None or weight == 1:
            continue
        if before is None or not before.b.any():
            scaled = Factors(after.a, (weight * after.b).astype(np.float32))
            tensors |= zip(keys_of(group), scaled, strict=True)
        elif weight == 0:
            tensors |= zip(keys_of(group), before, strict=True)
        else:
            mean = FactoredSum.lossless(after)
            mean.add(before, 1 - weight)
            mean.add(after, weight)
            offers[group] = Offer(mean, after)
    published, state, truncation = publish(state, offers)
    return Merged(tensors=tensors | published, state=state, truncation=truncation)


def start_of(state: State) -> dict[ParamKey, Array]:
    """The tensors the task started from, as a merger remembers them; none in the first task."""
    return {
        ParamKey.parse(name.removeprefix(_START)): value
        for name, value in state.items()
        if name.startswith(_START)
    }


def starting(state: State, tensors: Tensors) -> State:
    """``state`` with ``tensors`` as the start of the next task."""
    others = {name: value for name, value in state.items() if not name.startswith(_START)}
    return others | {_START + key.text: value for key, value in tensors.items()}


def _dense(key: ParamKey, before: Array | None, after: Array, weight: float) -> Array:
    start = np.zeros_like(after) if before is None else before
    if weight == 1:
        return after
    moved = start + weight * np.subtract(after, start, dtype=np.float64)
    value: Array = moved.astype(np.float32)
    if key.group == HEAD:
        new = ~start.reshape(len(start), -1).any(axis=1)
        value[new] = after[new]
    return value
