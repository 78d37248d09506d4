"""The blocks next to the output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge

from strategies.layer_selection.blocks import from_the_top
from strategies.rng import Rng
from strategies.types import RoundView, Selection


@dataclass(frozen=True, slots=True)
class Top:
    """Every client trains the last ``blocks`` blocks and the head: the cheapest backward pass.

    Source: the baseline "Top" of arXiv 2408.15600.
    """

    blocks: Annotated[int, Ge(1)] = 2

    def select(self, view: RoundView, rng: Rng) -> Selection:
        return from_the_top(view, self.blocks)
