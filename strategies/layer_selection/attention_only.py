"""Attention alone: what a transformer mixes with, not what it stores."""

from __future__ import annotations

from dataclasses import dataclass

from strategies.layer_selection.blocks import TRAINED, is_attention
from strategies.rng import Rng
from strategies.types import RoundView, Selection


@dataclass(frozen=True, slots=True)
class AttentionOnly:
    """Every client trains the attention modules of all blocks; feed-forward rests.

    The head and what else lies outside the blocks is trained too.

    About a third of a block's weights.  The backward pass still runs through the rest.
    Source: Touvron et al. 2022, arXiv 2203.09795.
    """

    def select(self, view: RoundView, rng: Rng) -> Selection:
        names = tuple(
            group.name
            for group in view.groups
            if group.kind in TRAINED and (group.block is None or is_attention(group))
        )
        return {client.client_id: names for client in view.clients}
