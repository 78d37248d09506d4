"""DMT: a pinch of what came before is mixed into the new examples."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np
from annotated_types import Ge, Le

from clients.methods.base import ClientMethod
from clients.training import Draw

if TYPE_CHECKING:
    from clients.training import LocalRun
    from strategies.protocols import ExampleIds

_NAME = "dmt"


@dataclass(frozen=True, slots=True)
class DualStageMixing(ClientMethod):
    """A task is learnt on its own examples and round(``share``·n) of earlier ones, mixed evenly.

    n are the examples of past tasks the client's memory was ever offered; the few are drawn from
    the memory once per task, as far as it holds so many.  An epoch meets each of them once, so a
    step costs what it costs without.  ``share`` 0 is plain fine-tuning, bit for bit.
    Source: DMT, arXiv 2310.05492, stage 2, whose k is ``share``; departs: every task is a stage,
    and the past is the memory instead of all earlier data.
    """

    remembers: ClassVar[bool] = True
    share: Annotated[float, Ge(0), Le(1)] = 1 / 256

    def task_start(self, run: LocalRun) -> None:
        memory = run.state.memory
        past = memory.offered[:, 0] != run.memory_task
        count, drawn = round(self.share * int(memory.offered[past, 2].sum())), memory.ids[:0]
        if count:
            drawn = run.policy.draw(memory, count, run.memory_rng)
        run.state = replace(run.state, chosen={**run.state.chosen, _NAME: drawn})

    def select(self, run: LocalRun, ids: ExampleIds) -> ExampleIds:
        return np.concatenate([ids, run.state.chosen[_NAME]])

    def batch(self, run: LocalRun, draw: Draw) -> Draw:
        old = np.isin(draw.new, run.state.chosen[_NAME])
        run.num_replayed += int(old.sum())
        return Draw(draw.new[~old], np.concatenate([draw.new[old], draw.replayed]))

    def after_local(self, run: LocalRun) -> None:
        run.remember()
