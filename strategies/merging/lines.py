"""Shallow blocks keep less of what a task changed than deep ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Ge

from strategies.merging.between import between, start_of, starting
from strategies.protocols import Merged, MergeView
from strategies.types import GroupName, GroupSpec, State, Tensors


@dataclass(frozen=True, slots=True)
class LiNeS:
    """Δ ← (α + β · l/(L−1)) Δ in block l of L, Δ being what the task itself changed.

    Scaled once, at the task's end: what older tasks left is not scaled again.  Embeddings and all
    else outside the blocks get α; the head has no depth and stays as trained.  The only block of a
    model is its last: α + β.
    Source: LiNeS, arXiv 2410.17146, eq. 3; departs: task by task, from the state the task started
    with, cut to the server's rank; the head is left alone.
    """

    changes_base: ClassVar[bool] = False
    alpha: Annotated[float, Ge(0)] = 0.5
    beta: Annotated[float, Ge(0)] = 0.5

    def task_end(self, view: MergeView, tensors: Tensors, state: State) -> Merged:
        merged = between(start_of(state), tensors, self.factors(view.groups), state)
        return Merged(
            tensors=merged.tensors,
            state=starting(merged.state, merged.tensors),
            truncation=merged.truncation,
        )

    def factors(self, groups: tuple[GroupSpec, ...]) -> dict[GroupName, float]:
        """What each group's change is multiplied by; no entry for the head."""
        last = max((group.block for group in groups if group.block is not None), default=0)
        depth = {
            group.name: group.block / last if last else 1.0
            for group in groups
            if group.block is not None
        }
        return {
            group.name: self.alpha + self.beta * depth.get(group.name, 0.0)
            for group in groups
            if group.kind != "head"
        }
