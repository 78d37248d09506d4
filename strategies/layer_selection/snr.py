"""Blocks whose gradients agree with themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge

from strategies.layer_selection.blocks import (
    affordable,
    best,
    block_scores,
    from_the_top,
    with_common,
)
from strategies.protocols import Question
from strategies.rng import Rng
from strategies.types import RoundView, Selection


@dataclass(frozen=True, slots=True)
class SignalToNoise:
    """Each client trains the ``blocks`` blocks with the largest score on its own data.

    Score: Σ mean(g)²/std(g) over the block's tensors.
    Source: a baseline of arXiv 2408.15600, after arXiv 2210.11466 (Surgical Fine-Tuning).
    """

    blocks: Annotated[int, Ge(1)] = 2
    batches: Annotated[int, Ge(1)] = 2
    every: Annotated[int, Ge(1)] = 1
    """Rounds of a task from one probe to the next."""

    def question(self, task_index: int, round_index: int) -> Question | None:
        if round_index % self.every:
            return None
        return Question(statistics=("signal-to-noise",), batches=self.batches)

    def select(self, view: RoundView, rng: Rng) -> Selection:
        scores = block_scores(view, "signal-to-noise")
        if scores is None:
            return from_the_top(view, self.blocks)
        return {
            client.client_id: with_common(
                view, best(scores[client.client_id], affordable(view, client, self.blocks))
            )
            for client in view.clients
        }
