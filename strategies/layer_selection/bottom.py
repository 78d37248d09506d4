"""The blocks next to the input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge

from strategies.layer_selection.blocks import affordable, with_common
from strategies.rng import Rng
from strategies.types import RoundView, Selection


@dataclass(frozen=True, slots=True)
class Bottom:
    """Every client trains the first ``blocks`` blocks and the head.

    Source: the baseline "Bottom" of arXiv 2408.15600.
    """

    blocks: Annotated[int, Ge(1)] = 2

    def select(self, view: RoundView, rng: Rng) -> Selection:
        return {
            client.client_id: with_common(view, range(affordable(view, client, self.blocks)))
            for client in view.clients
        }
