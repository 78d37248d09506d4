"""Telly: the bottom stays as it was pre-trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge

from strategies.layer_selection.blocks import blocks_of, with_common
from strategies.rng import Rng
from strategies.types import RoundView, Selection


@dataclass(frozen=True, slots=True)
class Telly:
    """Blocks 0 … ``frozen`` − 1 are frozen, the others and the head trained, by every client.

    With ``frozen`` at the number of blocks only the head is trained; of a model without a head the
    last block is trained all the same.
    Source: Telly-K, arXiv 2304.05216; departs: embeddings stay frozen for K = 0 too.
    """

    frozen: Annotated[int, Ge(0)] = 3

    def select(self, view: RoundView, rng: Rng) -> Selection:
        blocks = range(len(blocks_of(view)))
        names = with_common(view, blocks[self.frozen :]) or with_common(view, blocks[-1:])
        return {client.client_id: names for client in view.clients}
