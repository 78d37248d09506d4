"""EVA: ranks and first directions from what the modules' inputs look like."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from annotated_types import Ge

from strategies.lora import ROW_NORM, keys_of
from strategies.protocols import Question
from strategies.rank.limits import largest_ranks
from strategies.rng import Rng
from strategies.types import (
    Array,
    GroupName,
    ParamKey,
    Ranks,
    RoundView,
    Selection,
    State,
    Tensors,
)


@dataclass(frozen=True, slots=True)
class Eva:
    """Before the first round, A becomes the leading right singular vectors of each module's inputs.

    Clients send S·Vᵀ of their own inputs, which the server stacks and decomposes again: with enough
    components that is the decomposition of all inputs together.  The explained-variance ratios of
    all modules are pooled and the best Σ r components kept, at most ρ·r per module; a module with
    none is not trained.  B starts at zero, so the model is unchanged.
    Source: EVA, arXiv 2410.07170, Alg. 1; departs: fixed number of batches instead of a convergence
    test, inputs are not centred, rows of A get the length of the usual initialisation.
    """

    same_for_all: ClassVar[bool] = True
    rank: Annotated[int, Ge(1)] = 8
    rho: Annotated[int, Ge(1)] = 2
    batches: Annotated[int, Ge(1)] = 4

    @property
    def max_rank(self) -> int:
        return self.rank * self.rho

    def question(self, task_index: int, round_index: int) -> Question | None:
        if task_index or round_index:
            return None
        return Question(
            statistics=("input-spectrum",), batches=self.batches, max_rank=self.max_rank
        )

    def initialize(self, view: RoundView, tensors: Tensors) -> tuple[Tensors, State]:
        started, ratios = dict(tensors), dict[GroupName, Array]()
        for name in largest_ranks(view, self.max_rank):
            key = ParamKey(name, "input-spectrum")
            sketches = [found[key] for found in view.evidence.values() if key in found]
            key_a, _ = keys_of(name)
            if not sketches or key_a not in started:
                continue
            _, values, vectors = np.linalg.svd(np.vstack(sketches), full_matrices=False)
            kept = min(len(values), started[key_a].shape[0])
            a = started[key_a].copy()
            a[:kept] = ROW_NORM * vectors[:kept]
            started[key_a] = a
            energy = np.square(values, dtype=np.float64)
            ratios[name] = (energy / max(energy.sum(), 1e-30))[:kept]
        return started, self._shares(view, ratios)

    def allocate(self, view: RoundView, selection: Selection, rng: Rng) -> Ranks:
        ranks = {
            name: int(view.state.get(name, np.array(size)))
            for name, size in largest_ranks(view, self.rank).items()
        }
        return {
            client: {name: ranks[name] for name in chosen if name in ranks}
            for client, chosen in selection.items()
        }

    def _shares(self, view: RoundView, ratios: dict[GroupName, Array]) -> State:
        """Ranks by pooled explained variance; they sum to what equal ranks would."""
        equal = largest_ranks(view, self.rank)
        budget = sum(equal[name] for name in ratios)
        ranks = dict.fromkeys(ratios, 0)
        pooled = sorted(
            (-float(ratio), index, name)
            for name, found in ratios.items()
            for index, ratio in enumerate(found)
        )
        for _, _, name in pooled[:budget]:
            ranks[name] += 1
        return {name: np.array(rank) for name, rank in ranks.items()}
