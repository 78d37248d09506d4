"""One rank for everything."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge

from strategies.rng import Rng
from strategies.types import Ranks, RoundView, Selection


@dataclass(frozen=True, slots=True)
class Fixed:
    """Every selected linear group gets ``rank``, or its smaller dimension if that is less."""

    rank: Annotated[int, Ge(1)] = 8

    @property
    def max_rank(self) -> int:
        return self.rank

    def allocate(self, view: RoundView, selection: Selection, rng: Rng) -> Ranks:
        ranks = {g.name: min(self.rank, *g.linear) for g in view.groups if g.linear}
        return {
            client: {name: ranks[name] for name in names if name in ranks}
            for client, names in selection.items()
        }
