"""HetLoRA: every client its own rank, which it prunes itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from annotated_types import Ge, Gt, Lt

from strategies.rank.limits import meets_deadline, plans_of, uniform
from strategies.rng import Rng
from strategies.types import (
    ClientProfile,
    Observation,
    Ranks,
    RoundView,
    Selection,
    State,
    Statistic,
)


@dataclass(frozen=True, slots=True)
class HetLoRA:
    """Client k trains every group at rank rₖ; rₖ ← ⌊γ rₖ⌋ when its tail shrank in training.

    A client starts at the largest rank its deadline allows.  The tail are the components from
    ⌊γ rₖ⌋ on, its size ‖B tail‖·‖A tail‖ summed over groups; what the client received is compared
    with what it sent back.  Goes with aggregation ``hetlora`` and client method ``hetlora``, which
    adds the penalty that makes tails shrink.
    Source: HetLoRA, arXiv 2401.06432, Alg. 1; departs: ranks start from what the client can afford
    instead of being given.
    """

    same_for_all: ClassVar[bool] = False
    rank: Annotated[int, Ge(1)] = 16
    smallest: Annotated[int, Ge(1)] = 2
    gamma: Annotated[float, Gt(0), Lt(1)] = 0.85

    @property
    def max_rank(self) -> int:
        return self.rank

    @property
    def reports(self) -> tuple[Statistic, ...]:
        return ("component-norms",)

    def allocate(self, view: RoundView, selection: Selection, rng: Rng) -> Ranks:
        return {
            client.client_id: uniform(
                view, selection[client.client_id], self._rank_of(view, client, selection)
            )
            for client in view.clients
        }

    def observe(self, view: RoundView, seen: Sequence[Observation], rng: Rng) -> State:
        state = dict(view.state)
        for observation in seen:
            ranks = [plan.rank for plan in observation.groups.values() if plan.kind == "low-rank"]
            if observation.answered and ranks:
                rank = max(ranks)
                state[observation.client_id] = np.array(self._pruned(rank, observation))
        return state

    def _rank_of(self, view: RoundView, client: ClientProfile, selection: Selection) -> int:
        known, chosen = view.state.get(client.client_id), selection[client.client_id]
        if known is not None:
            return int(known)
        return next(
            (
                rank
                for rank in range(self.rank, self.smallest, -1)
                if meets_deadline(view, client, plans_of(chosen, uniform(view, chosen, rank)))
            ),
            min(self.smallest, self.rank),
        )

    def _pruned(self, rank: int, observation: Observation) -> int:
        kept = int(self.gamma * rank)
        before, after = 0.0, 0.0
        for key, norms in observation.evidence.items():
            if key.part == "component-norms":
                tails = np.sqrt(np.asarray(norms, dtype=np.float64)[:, kept:].sum(axis=1))
                before += float(tails[0] * tails[1])
                after += float(tails[2] * tails[3])
        return max(kept, self.smallest) if after < before and kept >= self.smallest else rank
