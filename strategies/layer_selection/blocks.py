"""What block-wise selectors share: blocks, what is always trained, the budget, scores."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from strategies.cost import CostModel, cautious
from strategies.fitting import least_bytes
from strategies.types import (
    ClientId,
    ClientProfile,
    Dense,
    GroupKind,
    GroupName,
    GroupPlan,
    GroupSpec,
    LowRank,
    ParamKey,
    RoundView,
    Selection,
    Statistic,
)

Kinds = tuple[GroupKind, ...]
TRAINED: Final[Kinds] = ("linear", "head")
_ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)


def blocks_of(view: RoundView, kinds: Kinds = TRAINED) -> tuple[tuple[GroupName, ...], ...]:
    """The trainable groups of each block, block 0 nearest to the input."""
    blocks = dict[int, list[GroupName]]()
    for group in view.groups:
        if group.block is not None and group.kind in kinds:
            blocks.setdefault(group.block, []).append(group.name)
    return tuple(tuple(blocks[index]) for index in sorted(blocks))


def common_groups(view: RoundView, kinds: Kinds = TRAINED) -> tuple[GroupName, ...]:
    """Groups outside the blocks, such as the head: trained whatever is selected."""
    return tuple(g.name for g in view.groups if g.block is None and g.kind in kinds)


def with_common(
    view: RoundView, chosen: Iterable[int], kinds: Kinds = TRAINED
) -> tuple[GroupName, ...]:
    """The groups of the chosen blocks and the common ones."""
    blocks = blocks_of(view, kinds)
    return (*(n for index in sorted(chosen) for n in blocks[index]), *common_groups(view, kinds))


def is_attention(group: GroupSpec) -> bool:
    """Whether the group is part of an attention module, by its path, in any known architecture."""
    return _ATTENTION.search(group.name) is not None


def in_order(view: RoundView) -> list[ClientProfile]:
    """The cohort by id, so that neither sums nor ties depend on who comes first."""
    return sorted(view.clients, key=lambda client: client.client_id)


def affordable(view: RoundView, client: ClientProfile, wanted: int) -> int:
    """The most blocks, up to ``wanted``, that fit the client's deadline and memory; at least one.

    Counted at rank 1 from the top, the cheapest way to train so many; ranks are decided later.
    """
    wanted = _in_memory(view, client, min(wanted, len(blocks_of(view))))
    deadline, known = view.budget.deadline_seconds, client.flops_per_second is not None
    if deadline is None or not known:
        return wanted
    client = cautious(client)
    costs = CostModel.of(view.groups, view.budget, client)
    for count in range(wanted, 1, -1):
        seconds = costs.round_seconds(client, _cheapest(view, count))
        if seconds is not None and seconds <= deadline:
            return count
    return min(wanted, 1)


def _in_memory(view: RoundView, client: ClientProfile, wanted: int) -> int:
    """As many as fit with small batches and checkpointing; one is left to the planner to refuse."""
    if client.memory_limit_bytes is None:
        return wanted
    costs = CostModel.of(view.groups, view.budget, client)
    fitting = (
        count
        for count in range(wanted, 1, -1)
        if least_bytes(costs, _cheapest(view, count), client) <= client.memory_limit_bytes
    )
    return next(fitting, min(wanted, 1))


def _cheapest(view: RoundView, count: int) -> dict[GroupName, GroupPlan]:
    linear = {group.name for group in view.groups if group.linear}
    top = range(len(blocks_of(view)) - count, len(blocks_of(view)))
    return {name: LowRank(rank=1) if name in linear else Dense() for name in with_common(view, top)}


def block_scores(
    view: RoundView, statistic: Statistic
) -> Mapping[ClientId, NDArray[np.float64]] | None:
    """Per client, ``statistic`` summed over each block (L,), from what it reported last.

    A client that reported nothing is given the others' mean; None if nobody has.
    """
    blocks = blocks_of(view)
    found = {
        client.client_id: scores
        for client in in_order(view)
        if (scores := _reported(view, client.client_id, blocks, statistic)) is not None
    }
    if not found:
        return None
    mean: NDArray[np.float64] = np.mean(list(found.values()), axis=0)
    return {c.client_id: found.get(c.client_id, mean) for c in view.clients}


def _reported(
    view: RoundView,
    client: ClientId,
    blocks: Sequence[Sequence[GroupName]],
    statistic: Statistic,
) -> NDArray[np.float64] | None:
    own = view.evidence.get(client, {})
    keys = [[ParamKey(name, statistic) for name in block] for block in blocks]
    if not any(key in own for block in keys for key in block):
        return None
    return np.array([sum(float(own.get(key, 0.0)) for key in block) for block in keys])


def best(scores: NDArray[np.float64], count: int) -> list[int]:
    """The ``count`` highest-scoring blocks; among equals the one nearer to the output."""
    order = sorted(range(len(scores)), key=lambda index: (-scores[index], -index))
    return sorted(order[:count])


def from_the_top(view: RoundView, blocks: int) -> Selection:
    """What is chosen while nothing is known: the blocks nearest to the output."""
    num_blocks = len(blocks_of(view))
    return {
        client.client_id: with_common(
            view, range(num_blocks - affordable(view, client, blocks), num_blocks)
        )
        for client in view.clients
    }
