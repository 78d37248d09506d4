"""What every rank policy needs: how large a rank can be, and what a rank vector costs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from strategies.cost import CostModel, cautious
from strategies.types import (
    ClientProfile,
    Dense,
    GroupName,
    GroupPlan,
    LowRank,
    RoundView,
)


def largest_ranks(view: RoundView, max_rank: int) -> dict[GroupName, int]:
    """Per linear group of the model, ``max_rank`` or its smaller dimension if that is less."""
    return {group.name: min(max_rank, *group.linear) for group in view.groups if group.linear}


def uniform(view: RoundView, chosen: Iterable[GroupName], rank: int) -> dict[GroupName, int]:
    """``rank`` for every chosen linear group, as far as its shape allows."""
    largest = largest_ranks(view, rank)
    return {name: largest[name] for name in chosen if name in largest}


def plans_of(
    chosen: Iterable[GroupName], ranks: Mapping[GroupName, int]
) -> dict[GroupName, GroupPlan]:
    """The plan that ``ranks`` make of a selection; rank 0 is no plan."""
    return {
        name: LowRank(rank=ranks[name]) if name in ranks else Dense()
        for name in chosen
        if ranks.get(name) != 0
    }


def expected_seconds(
    view: RoundView, client: ClientProfile, plans: Mapping[GroupName, GroupPlan]
) -> float:
    """Seconds of the whole round; what was never measured is assumed slow."""
    client = cautious(client)
    seconds = CostModel.of(view.groups, view.budget, client).round_seconds(client, plans)
    carried = view.carried_bytes.get(client.client_id, 0.0)
    return (seconds or 0.0) + carried / (client.downlink_bytes_per_second or 1.0)


def meets_deadline(
    view: RoundView, client: ClientProfile, plans: Mapping[GroupName, GroupPlan]
) -> bool:
    """Whether the cost model expects the plan to fit."""
    deadline = view.budget.deadline_seconds
    return deadline is None or expected_seconds(view, client, plans) <= deadline
