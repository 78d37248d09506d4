"""Small rounds of federated LoRA, and what they should give, in dense float64 arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from strategies.catalog import AGGREGATORS
from strategies.lora import (
    decompose,
    factors_of,
    initial_factors,
    keys_of,
    merged_keys,
    num_merged,
    to_factors,
)
from strategies.protocols import Aggregated, Aggregator, Alternating, Contribution, Personalizing
from strategies.rng import rng_for
from strategies.types import FACTORS, LORA_A, GroupName, ParamKey, Tensors

D_OUT, D_IN, RANK = 12, 20, 6
GROUP, OTHER = GroupName("layer.query"), GroupName("layer.value")

# By design these forget components that a client was not sent.
FADING = ("flexlora", "hetlora")
# By design every client counts the same to these, whatever it says of its examples.
UNWEIGHTED = ("trimmed-mean", "coordinate-median")


def server(
    seed: int = 0, *groups: GroupName, rank: int = RANK, linear: tuple[int, int] = (D_OUT, D_IN)
) -> dict[ParamKey, Any]:
    """Factors of some rounds: components ordered, both factors non-zero."""
    tensors: dict[ParamKey, Any] = {}
    d_out, d_in = linear
    for group in groups or (GROUP,):
        rng = rng_for(seed, "state", group)
        a, b = rng.normal(size=(rank, d_in)), rng.normal(size=(d_out, rank))
        tensors |= zip(keys_of(group), to_factors(decompose(a, b), rank), strict=True)
    return tensors


def fresh(seed: int = 0, rank: int = RANK) -> dict[ParamKey, Any]:
    """Factors of a run's first round: B is zero."""
    factors = initial_factors((D_OUT, D_IN), rank, rng_for(seed, "fresh"))
    return dict(zip(keys_of(GROUP), factors, strict=True))


def client(
    index: int,
    rank: int = RANK,
    weight: float = 1.0,
    *,
    seed: int = 0,
    parts: Sequence[str] = FACTORS,
    size: float = 0.1,
    groups: Sequence[GroupName] = (GROUP,),
    linear: tuple[int, int] = (D_OUT, D_IN),
) -> Contribution:
    """A client that moved ``parts`` of its first ``rank`` components at random."""
    rng, delta = rng_for(seed, "client", index), {}
    d_out, d_in = linear
    for group in groups:
        for key, shape in zip(keys_of(group), ((rank, d_in), (d_out, rank)), strict=True):
            values = size * rng.normal(size=shape).astype(np.float32)
            if key.part in parts:
                delta[key] = values.astype(np.float32)
    return Contribution(
        client_id=str(index), delta=delta, weight={group: np.array(weight) for group in groups}
    )


def parts_of(aggregator: Aggregator, round_index: int = 0) -> tuple[str, ...]:
    """The factors its clients send in a round."""
    if isinstance(aggregator, Personalizing):
        return (LORA_A,)
    if isinstance(aggregator, Alternating):
        trained = aggregator.trained_factors(round_index)
        return tuple(part for part, moves in zip(FACTORS, trained, strict=True) if moves)
    return FACTORS


def allowed(aggregator: Aggregator, ranks: Sequence[int]) -> list[int]:
    """The ranks as far as the aggregator can do with unequal ones."""
    equal = aggregator.capabilities.needs_equal_rank
    return [ranks[0]] * len(ranks) if equal else list(ranks)


def merge(
    name: str, state: Tensors, clients: Sequence[Contribution], memory: Any = None
) -> Aggregated:
    """One round by the catalog's aggregator with its defaults; clients are read once."""
    return AGGREGATORS[name]().aggregate(memory or {}, state, iter(clients), 2.0, rng_for(1, "agg"))


def product(tensors: Tensors, group: GroupName = GROUP) -> np.ndarray:
    """B A of the whole update in float64: trainable factors and merged pairs."""
    pairs = [keys_of(group), *(merged_keys(group, i) for i in range(num_merged(tensors, group)))]
    return sum(tensors[b].astype(float) @ tensors[a].astype(float) for a, b in pairs)


def rank_of(contribution: Contribution) -> int:
    key_a, key_b = keys_of(GROUP)
    delta = contribution.delta
    return delta[key_a].shape[0] if key_a in delta else delta[key_b].shape[1]


def sent_to(state: Tensors, contribution: Contribution) -> tuple[np.ndarray, np.ndarray]:
    """A and B as the client got them."""
    a, b = factors_of(state, GROUP).prefix(rank_of(contribution))
    return a.astype(float), b.astype(float)


def held(state: Tensors, contribution: Contribution) -> tuple[np.ndarray, np.ndarray]:
    """A and B as the client has them after training."""
    key_a, key_b = keys_of(GROUP)
    a, b = sent_to(state, contribution)
    return a + contribution.delta.get(key_a, 0), b + contribution.delta.get(key_b, 0)


def local_product(state: Tensors, contribution: Contribution) -> np.ndarray:
    a, b = held(state, contribution)
    return b @ a


def shares(clients: Sequence[Contribution]) -> np.ndarray:
    weights = np.array([float(c.weight[GROUP]) for c in clients])
    return weights / weights.sum()


def mean_of_models(state: Tensors, clients: Sequence[Contribution]) -> np.ndarray:
    """ΔW + Σ pₖ (BₖAₖ − sentₖ): what the clients' models average to."""
    target = product(state)
    for share, c in zip(shares(clients), clients, strict=True):
        a, b = sent_to(state, c)
        target = target + share * (local_product(state, c) - b @ a)
    return target


def mean_of_clients(state: Tensors, clients: Sequence[Contribution]) -> np.ndarray:
    """Σ pₖ BₖAₖ of what clients hold."""
    products = [local_product(state, c) for c in clients]
    return sum(share * p for share, p in zip(shares(clients), products, strict=True))


def best_of_rank(matrix: np.ndarray, rank: int) -> np.ndarray:
    u, s, v = np.linalg.svd(matrix, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ v[:rank]
