"""Experience replay: every batch brings back examples from the client's own memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from clients.methods.base import ClientMethod
from clients.recall import recalled
from clients.training import Draw

if TYPE_CHECKING:
    from clients.training import LocalRun


@dataclass(frozen=True, slots=True)
class ExperienceReplay(ClientMethod):
    """A ``share`` of every batch is drawn from the memory instead of from the new examples.

    The batch keeps its size, so a step costs what it costs without replay; ``share`` 0 is plain
    fine-tuning, bit for bit.
    Source: Chaudhry et al., arXiv 1902.10486, as in sheet D1 with b = m at a share of one half;
    departs: an example is offered to the memory once per task, after the round that first trained
    on it, not at every visit.
    """

    remembers: ClassVar[bool] = True

    def batch(self, run: LocalRun, draw: Draw) -> Draw:
        wanted = round(run.work.replay.share * len(draw.new))
        replayed = recalled(run, draw.new[: len(draw.new) - wanted], wanted)
        run.num_replayed += len(replayed)
        kept = draw.new[: len(draw.new) - len(replayed)]
        return Draw(kept, np.concatenate([draw.replayed, replayed]))

    def after_local(self, run: LocalRun) -> None:
        run.remember()
