"""A rank vector as the policy writes it, what it costs, and how it is made to fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from strategies.cost import cautious
from strategies.rank.limits import expected_seconds, largest_ranks, plans_of
from strategies.types import Array, ClientProfile, GroupName, GroupPlan, RoundView, State

NUM_FEATURES: Final = 5  # what a state says besides the last ranks
PENALTY: Final = 10.0  # per κ of a choice that cannot be sent in time
_UNLIMITED_SECONDS: Final = 60.0  # stands in for a deadline where there is none

Plans = Mapping[GroupName, GroupPlan]


def decoded(x: Array, max_rank: int) -> list[int]:
    """Ranks 1 … ``max_rank`` from x ∈ [−1, 1]ⁿ, in equal bins."""
    bins = np.floor((np.asarray(x, dtype=np.float64) + 1) / 2 * max_rank).astype(int)
    return [int(rank) for rank in np.clip(bins, 0, max_rank - 1) + 1]


def encoded(ranks: Sequence[int], max_rank: int) -> Array:
    """The middle of each rank's bin."""
    return (np.asarray(ranks, dtype=np.float64) - 0.5) / max_rank * 2 - 1


def share_of_deadline(view: RoundView, client: ClientProfile, plans: Plans) -> float:
    """κ: expected seconds of the round over the deadline."""
    return expected_seconds(view, client, plans) / deadline_of(view)


def fitted(
    view: RoundView,
    client: ClientProfile,
    chosen: Sequence[GroupName],
    ranks: Mapping[GroupName, int],
) -> dict[GroupName, int]:
    """The ranks of what the client trains, scaled down until the deadline can be met."""
    own = {name: ranks[name] for name in chosen if name in ranks}
    if view.budget.deadline_seconds is None:
        return own
    for factor in (*np.arange(1.0, 0.0, -0.05), 0.0):
        scaled = {name: max(int(factor * rank), 1) for name, rank in own.items()}
        if share_of_deadline(view, client, plans_of(chosen, scaled)) <= 1:
            return scaled
    # Not even rank 1 everywhere: leave modules out, from the input up, until it fits.
    for count in range(1, len(own) + 1):
        scaled = {name: int(index >= count) for index, name in enumerate(own)}
        if share_of_deadline(view, client, plans_of(chosen, scaled)) <= 1:
            return scaled
    return dict.fromkeys(own, 0)


def features(view: RoundView, state: State, client: ClientProfile, max_rank: int) -> Array:
    """What the policy sees of a client: link, speed, last loss and κ, last ranks in shares."""
    known = cautious(client)
    loss, kappa = state.get(f"client/{client.client_id}/last", np.array([0.0, 0.0]))
    count = len(largest_ranks(view, max_rank))
    ranks = state.get(f"client/{client.client_id}/ranks", np.zeros(count))
    logs = [
        np.log10((known.uplink_bytes_per_second or 1.0) / 1e5),
        np.log10((known.downlink_bytes_per_second or 1.0) / 1e5),
        np.log10((known.flops_per_second or 1.0) / 1e10),
    ]
    return np.array([*logs, loss / 5, min(kappa, 3.0), *(ranks / max_rank)], dtype=np.float32)


def ranks_of(view: RoundView, x: Array, max_rank: int) -> dict[GroupName, int]:
    """Rank per linear group from one rank vector (n,)."""
    largest = largest_ranks(view, max_rank)
    return {
        name: min(rank, size)
        for (name, size), rank in zip(largest.items(), decoded(x, max_rank), strict=True)
    }


def deadline_of(view: RoundView) -> float:
    """The seconds κ is a share of."""
    return view.budget.deadline_seconds or _UNLIMITED_SECONDS
