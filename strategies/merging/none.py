"""Each task goes on from where the one before ended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from strategies.protocols import Merged, MergeView
from strategies.types import State, Tensors


@dataclass(frozen=True, slots=True)
class KeepAsTrained:
    """The state stays as the last round left it: plain sequential training."""

    changes_base: ClassVar[bool] = False

    def task_end(self, view: MergeView, tensors: Tensors, state: State) -> Merged:
        return Merged(tensors=tensors, state=state)
