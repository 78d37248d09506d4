"""First the client's own parts, then the shared ones, never both in one step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from clients.methods.base import ClientMethod

if TYPE_CHECKING:
    from clients.training import LocalRun


@dataclass(frozen=True, slots=True)
class LocalAlt(ClientMethod):
    """The first half of a round's steps moves only what the client keeps, the second the rest.

    Goes with layer selection ``fedselect``.  A client that keeps nothing yet trains everything.
    Source: LocalAlt in FedSelect, arXiv 2404.02478, Alg. 2; departs: halves of a fixed number of
    steps instead of one epoch each.
    """

    def grad(self, run: LocalRun) -> None:
        if not run.kept:
            return
        own_turn = 2 * run.step < run.work.steps
        for key, parameter in run.trainable.items():
            if (key.part in run.kept.get(key.group, ())) != own_turn:
                parameter.grad = None  # AdamW passes over it: no step, no decay, no moments
