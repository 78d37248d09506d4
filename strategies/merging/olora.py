"""One adapter per task: the old ones are frozen beside the base, the new one starts afresh."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from strategies.merging.folding import folded
from strategies.protocols import Merged, MergeView
from strategies.types import State, Tensors


@dataclass(frozen=True, slots=True)
class OLora:
    """At a task's end each group's A and B become a frozen pair; the next task draws A, B = 0.

    The model is W + scale · Σᵢ BᵢAᵢ over all tasks so far, and only the last pair is trained.
    Client method ``olora`` keeps the new A orthogonal to the frozen ones.
    Source: O-LoRA, arXiv 2310.14152, sec. 3.2; departs: one adapter for all clients; pairs become
    one, without loss, when their ranks exceed min(d_out, d_in).
    """

    changes_base: ClassVar[bool] = True

    def task_end(self, view: MergeView, tensors: Tensors, state: State) -> Merged:
        return Merged(tensors=folded(view, tensors), state=state)
