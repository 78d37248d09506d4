"""Blocks from both ends in turn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge

from strategies.layer_selection.blocks import affordable, blocks_of, with_common
from strategies.rng import Rng
from strategies.types import RoundView, Selection


@dataclass(frozen=True, slots=True)
class Both:
    """Every client trains ``blocks`` blocks: first, last, second, last but one, … and the head.

    Source: the baseline "Both" of arXiv 2408.15600.
    """

    blocks: Annotated[int, Ge(1)] = 2

    def select(self, view: RoundView, rng: Rng) -> Selection:
        last = len(blocks_of(view)) - 1
        order = [index // 2 if index % 2 == 0 else last - index // 2 for index in range(last + 1)]
        return {
            client.client_id: with_common(view, order[: affordable(view, client, self.blocks)])
            for client in view.clients
        }
