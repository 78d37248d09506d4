"""Half way between the model before a task and the one after it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Interval

from strategies.merging.between import between, start_of, starting
from strategies.protocols import Merged, MergeView
from strategies.types import State, Tensors


@dataclass(frozen=True, slots=True)
class WiseFt:
    """ΔW ← (1 − a)·ΔW before the task + a·ΔW after it, at every task's end; a is ``share``.

    In the first task the model before is the base.  Products are interpolated, not factors, and cut
    to the server's rank; dense tensors value by value.  Head rows of classes that are new in the
    task stay as trained.
    Source: WiSE-FT, arXiv 2109.01903, eq. 1; departs: task by task, from the state the task started
    with; products instead of weights; new head rows; a fixed a instead of a search.
    """

    changes_base: ClassVar[bool] = False
    share: Annotated[float, Interval(ge=0, le=1)] = 0.5

    def task_end(self, view: MergeView, tensors: Tensors, state: State) -> Merged:
        weights = dict.fromkeys((key.group for key in tensors), self.share)
        merged = between(start_of(state), tensors, weights, state)
        return Merged(
            tensors=merged.tensors,
            state=starting(merged.state, merged.tensors),
            truncation=merged.truncation,
        )
