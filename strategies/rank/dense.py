"""No adapters: the selected groups are trained as they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from strategies.rng import Rng
from strategies.types import Ranks, RoundView, Selection


@dataclass(frozen=True, slots=True)
class DenseTuning:
    """Full tuning of whatever the layer selector picks; updates are as large as the groups."""

    same_for_all: ClassVar[bool] = True

    @property
    def max_rank(self) -> int:
        return 0

    def allocate(self, view: RoundView, selection: Selection, rng: Rng) -> Ranks:
        return {client: {} for client in selection}
