"""One rank for everything."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Ge

from strategies.rank.limits import uniform
from strategies.rng import Rng
from strategies.types import Ranks, RoundView, Selection


@dataclass(frozen=True, slots=True)
class Fixed:
    """Every selected linear group gets ``rank``, or its smaller dimension if that is less."""

    same_for_all: ClassVar[bool] = True
    rank: Annotated[int, Ge(1)] = 8

    @property
    def max_rank(self) -> int:
        return self.rank

    def allocate(self, view: RoundView, selection: Selection, rng: Rng) -> Ranks:
        return {client: uniform(view, names, self.rank) for client, names in selection.items()}
