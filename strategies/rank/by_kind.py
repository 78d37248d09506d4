"""One rank per kind of device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Ge

from strategies.rank.limits import uniform
from strategies.rng import Rng
from strategies.types import Ranks, RoundView, Selection


@dataclass(frozen=True, slots=True)
class ByKind:
    """Edge boxes, CPU machines and GPU machines each get their own rank for every group.

    The heterogeneity experiments of FLoRA and FlexLoRA assign ranks like this, by tier.
    """

    same_for_all: ClassVar[bool] = False
    edge: Annotated[int, Ge(1)] = 4
    cpu: Annotated[int, Ge(1)] = 8
    gpu: Annotated[int, Ge(1)] = 16

    @property
    def max_rank(self) -> int:
        return max(self.edge, self.cpu, self.gpu)

    def allocate(self, view: RoundView, selection: Selection, rng: Rng) -> Ranks:
        return {
            client.client_id: uniform(view, selection[client.client_id], getattr(self, client.kind))
            for client in view.clients
        }
