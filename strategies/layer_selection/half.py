"""HFT: every task another random half of the model, the rest untouched."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from strategies.layer_selection.blocks import common_groups, is_attention
from strategies.rng import Rng, rng_for
from strategies.types import ClientId, GroupName, GroupSpec, RoundView, Selection


@dataclass(frozen=True, slots=True)
class Half:
    """Half of every block's matrices by category, drawn anew for each task.

    The head and what else lies outside the blocks is always trained.

    Of a block's attention matrices half are trained, of an odd number of feed-forward matrices one
    more in half of the blocks and one less in the others.  With ``complementary`` about every
    second client trains the other half instead.
    Source: HFT, arXiv 2404.18466; departs: LoRA on the chosen matrices, embeddings and
    the norms of the blocks frozen.
    """

    halves: Literal["same", "complementary"] = "same"

    def select(self, view: RoundView, rng: Rng) -> Selection:
        half, always = _half(view), set(common_groups(view))
        rest = {group.name for group in _linear(view)} - half
        return {
            client.client_id: tuple(
                group.name
                for group in view.groups
                if group.name in always | (rest if self._other(view, client.client_id) else half)
            )
            for client in view.clients
        }

    def _other(self, view: RoundView, client: ClientId) -> bool:
        if self.halves == "same":
            return False
        return bool(rng_for(view.seed, "half", client).integers(2))


def _half(view: RoundView) -> set[GroupName]:
    """The linear groups of this task's half, the same in all of its rounds."""
    rng, chosen = rng_for(view.seed, "half", view.task_index), set[GroupName]()
    for category in _categories(view):
        # Odd categories round up in one half of the blocks and down in the other.
        up = set(rng.permutation(len(category))[: (len(category) + 1) // 2].tolist())
        for index, names in enumerate(category):
            count = (len(names) + (index in up)) // 2
            chosen |= {names[i] for i in rng.permutation(len(names))[:count]}
    return chosen


def _categories(view: RoundView) -> Iterator[list[list[GroupName]]]:
    """Attention, then the rest: the linear groups of each block."""
    for wanted in (True, False):
        blocks = dict[int | None, list[GroupName]]()
        for group in _linear(view):
            if is_attention(group) == wanted:
                blocks.setdefault(group.block, []).append(group.name)
        yield list(blocks.values())


def _linear(view: RoundView) -> list[GroupSpec]:
    """The matrices of all blocks."""
    return [group for group in view.groups if group.kind == "linear" and group.block is not None]
