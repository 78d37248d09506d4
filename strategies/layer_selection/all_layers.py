"""Train everything: the reference every other selector is compared with."""

from __future__ import annotations

from dataclasses import dataclass

from strategies.rng import Rng
from strategies.types import GroupKind, RoundView, Selection


@dataclass(frozen=True, slots=True)
class AllLayers:
    """Every client trains every group of the given kinds; linear ones with LoRA, others densely."""

    kinds: tuple[GroupKind, ...] = ("linear", "head")

    def select(self, view: RoundView, rng: Rng) -> Selection:
        names = tuple(group.name for group in view.groups if group.kind in self.kinds)
        return {client.client_id: names for client in view.clients}
