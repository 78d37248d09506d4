"""GreenTrainer: the most important tensors a FLOPs budget can pay for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Final

import numpy as np
from annotated_types import Ge, Gt, Le
from numpy.typing import NDArray

from strategies.cost import CostModel, cautious, group_cost, lora_flops
from strategies.layer_selection.blocks import TRAINED, blocks_of, in_order, with_common
from strategies.protocols import Question
from strategies.rng import Rng
from strategies.types import (
    ClientProfile,
    Dense,
    GroupName,
    GroupPlan,
    GroupSpec,
    LowRank,
    ParamKey,
    RoundView,
    Selection,
)

_EXACT: Final = 1 + 1e-9  # what is meant to fit exactly shall not fail for the last bit
_UNITS: Final = 1000  # the budget in whole numbers, for the dynamic program
_LEAST_BACKWARD: Final = 0.05  # of a full backward pass
_RANK: Final = 8  # of the adapters whose weight gradients are counted; they cost little


@dataclass(frozen=True, slots=True)
class Green:
    """Each client trains the most important groups that ``share`` of a full step's FLOPs can buy.

    A group's importance is the first-order fall of the client's loss it brings about, −Σ g·Δθ for
    one optimizer step.  The backward pass must reach the deepest chosen group, and pays for every
    activation gradient on the way; so a group near the input must be worth all that.  With a
    deadline the budget is what the client's measured speed allows, if that is less.  The head is
    always trained; of a model without one the last group is, if nothing else can be.  Until anybody
    has answered a probe, as many blocks from the top as the budget can buy.
    Source: GreenTrainer, arXiv 2309.13192; departs: the dynamic program is a knapsack per deepest
    group, exact up to rounding each group's cost up to a thousandth of the budget.
    """

    share: Annotated[float, Gt(0), Le(1)] = 0.6
    batches: Annotated[int, Ge(1)] = 1
    every: Annotated[int, Ge(1)] = 1
    """Rounds of a task from one probe to the next."""

    def question(self, task_index: int, round_index: int) -> Question | None:
        if round_index % self.every:
            return None
        return Question(statistics=("descent",), batches=self.batches)

    def select(self, view: RoundView, rng: Rng) -> Selection:
        importance = _importance(view)
        if importance is None:
            return {client.client_id: self._from_the_top(view, client) for client in view.clients}
        return {
            client.client_id: self._chosen(view, client, importance[client.client_id])
            for client in view.clients
        }

    def _chosen(
        self, view: RoundView, client: ClientProfile, importance: NDArray[np.float64]
    ) -> tuple[GroupName, ...]:
        candidates = _candidates(view)[::-1]  # from the output down
        costs = CostModel.of(view.groups, view.budget, client)
        places = {group.name: index for index, group in enumerate(view.groups)}
        passing = np.cumsum([group_cost(group).activation_gradient for group in view.groups[::-1]])
        above = np.array(
            [
                passing[len(places) - places[g.name] - 2] if places[g.name] + 1 < len(places) else 0
                for g in candidates
            ]
        )
        own = np.array([3.0 * lora_flops(g, _rank(g)) for g in candidates])
        head = [group for group in view.groups if group.kind == "head"]
        spent = sum(group_cost(g).weight_gradient for g in head) + costs.flops_per_token({})
        picked = knapsack(importance[::-1], own, above, self._allowed(view, client, costs) - spent)
        chosen = {candidates[index].name for index in picked} | {group.name for group in head}
        chosen = chosen or {group.name for group in candidates[:1]}
        return tuple(group.name for group in view.groups if group.name in chosen)

    def _from_the_top(self, view: RoundView, client: ClientProfile) -> tuple[GroupName, ...]:
        costs = CostModel.of(view.groups, view.budget, client)
        allowed, blocks = self._allowed(view, client, costs), range(len(blocks_of(view)))
        for count in range(len(blocks), 1, -1):
            names = with_common(view, blocks[-count:])
            if costs.flops_per_token(_plans(view, names)) <= allowed * _EXACT:
                return names
        return with_common(view, blocks[-1:])

    def _allowed(self, view: RoundView, client: ClientProfile, costs: CostModel) -> float:
        """FLOPs per token of a whole step, forward pass and head included."""
        head = _plans(view, (group.name for group in view.groups if group.kind == "head"))
        everything = _plans(view, (group.name for group in view.groups if group.kind in TRAINED))
        forward, full = costs.flops_per_token({}), costs.flops_per_token(everything)
        allowed = max(self.share * full, forward + _LEAST_BACKWARD * (full - forward))
        deadline = view.budget.deadline_seconds
        if deadline is not None and client.flops_per_second is not None:
            client = cautious(client)
            idle = (costs.round_seconds(client, head) or 0.0) - (
                costs.compute_seconds(client, head) or 0.0
            )
            # Not the view's budget: a client that holds less than a batch has smaller ones.
            tokens = costs.budget.steps * costs.budget.batch_size * costs.tokens_per_example
            speed = client.flops_per_second or 0.0
            allowed = min(allowed, max(deadline - idle, 0.0) * speed / tokens)
        return allowed


def knapsack(
    importance: NDArray[np.float64],
    own: NDArray[np.float64],
    above: NDArray[np.float64],
    budget: float,
) -> list[int]:
    """The choice of the largest total importance whose cost is at most ``budget``.

    Items run from the output down; a choice costs Σ ``own`` of its items and ``above`` of its
    deepest.  Items that promise nothing (importance ≤ 0) are left out.  Each cost is rounded up to
    a thousandth of the budget, so the budget is kept, and what n items cost is overrated by up to
    n + 1 thousandths; only if all fit are they taken without rounding.
    """
    if budget <= 0:
        return []
    useful = np.flatnonzero(importance > 0)
    if len(useful) and own[useful].sum() + above[useful[-1]] <= budget * _EXACT:
        return [int(index) for index in useful]
    unit = budget / _UNITS
    weights = np.ceil(own / unit - 1e-9).astype(np.int64)
    # table[k][t]: the most importance of the first k items within t units.
    table = np.zeros((len(own) + 1, _UNITS + 1))
    best, deepest, room = 0.0, -1, 0
    for item, weight in enumerate(weights):
        left = _UNITS - int(np.ceil(above[item] / unit - 1e-9)) - weight
        if importance[item] > 0 and left >= 0 and importance[item] + table[item, left] > best:
            best, deepest, room = float(importance[item] + table[item, left]), item, int(left)
        table[item + 1] = table[item]
        if importance[item] > 0 and weight <= _UNITS:
            taken = table[item, : _UNITS + 1 - weight] + importance[item]
            table[item + 1, weight:] = np.maximum(table[item, weight:], taken)
    return [] if deepest < 0 else [*_traced(table, weights, deepest, room), deepest]


def _traced(
    table: NDArray[np.float64], weights: NDArray[np.int64], items: int, room: int
) -> list[int]:
    """The items behind ``table[items][room]``."""
    chosen = list[int]()
    for item in range(items - 1, -1, -1):
        if table[item + 1, room] > table[item, room]:
            chosen.append(item)
            room -= int(weights[item])
    return chosen[::-1]


def _candidates(view: RoundView) -> list[GroupSpec]:
    return [group for group in view.groups if group.kind in TRAINED and group.linear]


def _plans(view: RoundView, names: Iterable[GroupName]) -> dict[GroupName, GroupPlan]:
    """LoRA of the counted rank on linear groups, the head densely."""
    wanted = set(names)
    return {
        group.name: LowRank(rank=_rank(group)) if group.linear else Dense()
        for group in view.groups
        if group.name in wanted
    }


def _rank(group: GroupSpec) -> int:
    return min(_RANK, *(group.linear or (_RANK,)))


def _importance(view: RoundView) -> dict[str, NDArray[np.float64]] | None:
    """Per client, the importance of every candidate; the others' mean for who reported nothing."""
    names, found = [g.name for g in _candidates(view)], dict[str, NDArray[np.float64]]()
    for client in in_order(view):
        own = view.evidence.get(client.client_id, {})
        values = [own.get(ParamKey(name, "descent")) for name in names]
        if any(value is not None for value in values):
            found[client.client_id] = np.array([float(v) if v is not None else 0.0 for v in values])
    if not found:
        return None
    mean: NDArray[np.float64] = np.mean(list(found.values()), axis=0)
    return {c.client_id: found.get(c.client_id, mean) for c in view.clients}
