"""AdaLoRA: a shrinking budget of components, spread over the groups by importance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from annotated_types import Ge, Gt, Lt

from strategies.rank.limits import largest_ranks
from strategies.rng import Rng
from strategies.types import (
    Array,
    GroupName,
    Observation,
    ParamKey,
    Ranks,
    RoundView,
    Selection,
    State,
    Statistic,
)


@dataclass(frozen=True, slots=True)
class AdaLoRA:
    """The server pools the importance of all components of all groups and keeps the best b(t).

    Clients report the sensitivity of each component while they train; the server averages over
    clients, smooths over rounds and gives every group as many components as it has among the best.
    All clients of a round get the same ranks.  b(t) falls from ``rank`` to ``target`` components
    per group, cubically, over ``rounds`` training rounds after the first ``warm_up``.
    Source: AdaLoRA, arXiv 2303.10512, eq. 8 to 13; departs: B·A instead of P·Λ·Q (the server keeps
    its factors in singular order anyway), components leave from the end so that a rank is a prefix,
    every group keeps at least one.
    """

    same_for_all: ClassVar[bool] = True
    rank: Annotated[int, Ge(2)] = 12
    target: Annotated[int, Ge(1)] = 8
    warm_up: Annotated[int, Ge(0)] = 1
    rounds: Annotated[int, Ge(1)] = 10
    smoothing: Annotated[float, Gt(0), Lt(1)] = 0.85

    @property
    def max_rank(self) -> int:
        return self.rank

    @property
    def reports(self) -> tuple[Statistic, ...]:
        return ("sensitivity",)

    def budget(self, round_count: int, num_groups: int) -> int:
        """Components to keep after ``round_count`` training rounds."""
        target = min(self.target, self.rank)
        done = min(max((round_count - self.warm_up) / self.rounds, 0.0), 1.0)
        return round(num_groups * (target + (self.rank - target) * (1 - done) ** 3))

    def allocate(self, view: RoundView, selection: Selection, rng: Rng) -> Ranks:
        ranks = self._ranks(view)
        return {
            client: {name: ranks[name] for name in chosen if name in ranks}
            for client, chosen in selection.items()
        }

    def observe(self, view: RoundView, seen: Sequence[Observation], rng: Rng) -> State:
        largest = largest_ranks(view, self.rank)
        scores = {name: self._scores(view, name, largest[name]) for name in largest}
        for name, old in scores.items():
            key = ParamKey(name, "sensitivity")
            found = [o.evidence[key] for o in seen if key in o.evidence]
            if found:
                new = np.mean(np.stack(found).astype(np.float64), axis=0)
                known, first = old[: len(new)], not old.any()
                blend = new if first else self.smoothing * known + (1 - self.smoothing) * new
                old[: len(new)] = blend
        count = int(view.state.get("rounds", np.array(0))) + 1
        return {**{str(name): old for name, old in scores.items()}, "rounds": np.array(count)}

    def _ranks(self, view: RoundView) -> dict[GroupName, int]:
        largest = largest_ranks(view, self.rank)
        count = int(view.state.get("rounds", np.array(0)))
        budget = self.budget(count, len(largest))
        if not count:
            return largest
        # A component that leads its group is kept, whatever its score.
        ranks = dict.fromkeys(largest, 1)
        candidates = sorted(
            (-float(score), index, name)
            for name, size in largest.items()
            for index, score in enumerate(self._scores(view, name, size)[:size])
            if index
        )
        for _, _, name in candidates[: max(budget - len(largest), 0)]:
            ranks[name] += 1
        return ranks

    def _scores(self, view: RoundView, name: GroupName, size: int) -> Array:
        return np.array(view.state.get(name, np.zeros(size)), dtype=np.float64)
