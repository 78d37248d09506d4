"""A robust centre of the clients' deltas, number by number; shared by two aggregators."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from strategies.aggregation.low_rank import padded, split
from strategies.lora import keys_of
from strategies.protocols import Contribution
from strategies.types import LORA_A, Array, ParamKey, Tensors

Centre = Callable[[NDArray[np.float64], int], NDArray[np.float64]]
"""Values ``(n, …)``, sorted along axis 0, the first ``count`` of which there are, → their centre.

The others are +inf.
"""


def centred(
    current: Tensors, contributions: Iterable[Contribution], centre: Centre
) -> dict[ParamKey, Array]:
    """All tensors after every number moved by the centre of the clients' moves of it.

    Of a factor over those who were sent the component, of a dense tensor with one weight per row
    over those with weight in the row; what nobody moved stays.  Weights decide nothing else.
    Keeps all contributions of the round in memory.
    """
    moves = dict[ParamKey, list[tuple[Array, NDArray[np.bool_]]]]()
    for contribution in contributions:
        for key, delta, held in _moves(contribution, current):
            moves.setdefault(key, []).append((delta, held))
    tensors = dict(current)
    for key, found in sorted(moves.items()):
        move = _centre_of(found, centre)
        tensors[key] = np.add(current.get(key, 0), move, dtype=np.float64).astype(np.float32)
    return tensors


def _moves(
    contribution: Contribution, current: Tensors
) -> Iterator[tuple[ParamKey, Array, NDArray[np.bool_]]]:
    """Each delta of the server's shape, and where the client had something to say, as a mask."""
    trained, rest = split(contribution, current)
    whole = padded(contribution, current).delta
    for group, client in trained.items():
        for key in keys_of(group):
            if key in contribution.delta:
                yield key, whole[key], _components(key, whole[key], client.rank)
    for key in rest:
        weight = contribution.weight[key.group]
        if (weight > 0).any():
            shape = (-1,) + (1,) * (rest[key].ndim - 1) if weight.ndim else ()
            yield key, rest[key], (weight > 0).reshape(shape)


def _components(key: ParamKey, delta: Array, rank: int) -> NDArray[np.bool_]:
    """The first ``rank`` rows of A, or columns of B."""
    there = np.arange(delta.shape[0 if key.part == LORA_A else 1]) < rank
    return there[:, None] if key.part == LORA_A else there[None, :]


def _centre_of(found: list[tuple[Array, NDArray[np.bool_]]], centre: Centre) -> NDArray[np.float64]:
    """The centre of each number, where the count of those who moved it may differ."""
    values = np.stack([np.where(held, delta, np.inf) for delta, held in found]).astype(np.float64)
    counts = np.stack([np.broadcast_to(held, delta.shape) for delta, held in found]).sum(axis=0)
    values.sort(axis=0)
    move = np.zeros(values.shape[1:])
    for count in sorted(set(np.unique(counts).tolist()) - {0}):
        here = counts == count
        move[here] = centre(values[:, here], count)
    return move
