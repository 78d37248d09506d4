"""Surgical fine-tuning: the few blocks with the most Fisher information."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
from annotated_types import Ge
from numpy.typing import NDArray

from strategies.layer_selection.blocks import (
    affordable,
    best,
    block_scores,
    blocks_of,
    from_the_top,
    in_order,
    with_common,
)
from strategies.protocols import Question
from strategies.rng import Rng
from strategies.types import Observation, RoundView, Selection, State, Statistic


@dataclass(frozen=True, slots=True)
class Fisher:
    """All clients train the ``blocks`` blocks with the largest mean Fisher score, fixed per task.

    A block's score is the empirical Fisher information of its adapters, summed, over the number of
    values of one component; the federation's is the mean over clients weighted by their examples,
    which is that of the mixture of their data.  Probed once per task, since the paper finds that
    the ranking does not move while training.
    Source: arXiv 2310.17041 (FIM score); departs: of LoRA factors, and federated.
    """

    blocks: Annotated[int, Ge(1)] = 2
    batches: Annotated[int, Ge(1)] = 2

    @property
    def reports(self) -> tuple[Statistic, ...]:
        return ()

    def question(self, task_index: int, round_index: int) -> Question | None:
        if round_index:
            return None
        return Question(statistics=("fisher",), batches=self.batches)

    def select(self, view: RoundView, rng: Rng) -> Selection:
        scores = self._scores(view)
        if scores is None:
            return from_the_top(view, self.blocks)
        return {
            client.client_id: with_common(view, best(scores, affordable(view, client, self.blocks)))
            for client in view.clients
        }

    def observe(self, view: RoundView, seen: Sequence[Observation], rng: Rng) -> State:
        """Later cohorts of the task follow the first one's scores."""
        scores = self._scores(view)
        if scores is None:
            return view.state
        return {"task": np.array(view.task_index), "scores": scores}

    def _scores(self, view: RoundView) -> NDArray[np.float64] | None:
        if "scores" in view.state and int(view.state["task"]) == view.task_index:
            return np.asarray(view.state["scores"], dtype=np.float64)
        found = block_scores(view, "fisher")
        if found is None:
            return None
        mean = np.average(
            [found[client.client_id] for client in in_order(view)], axis=0, weights=_weights(view)
        )
        return np.asarray(mean / self._sizes(view))

    def _sizes(self, view: RoundView) -> NDArray[np.float64]:
        """Values of one LoRA component of each block, or of its tensors where there is no LoRA."""
        specs = {group.name: group for group in view.groups}
        return np.array(
            [
                sum(
                    sum(specs[name].linear or (sum(map(np.prod, specs[name].parts.values())),))
                    for name in block
                )
                for block in blocks_of(view)
            ],
            dtype=np.float64,
        )


def _weights(view: RoundView) -> list[int] | None:
    """Examples of the tasks trained on, by client id; None, all alike, if nobody holds any."""
    budget = replace(view.budget, tasks=view.budget.tasks or (view.task_index,))
    held = [budget.held(client) for client in in_order(view)]
    return held if any(held) else None
