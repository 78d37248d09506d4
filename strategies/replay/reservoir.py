"""Uniform memory of a stream of unknown length."""

from __future__ import annotations

from dataclasses import dataclass

from strategies.protocols import ExampleIds, Offer, ReplayMemory
from strategies.replay.slots import Slots, drawn_evenly
from strategies.rng import Rng


@dataclass(frozen=True, slots=True)
class Reservoir:
    """After n offers every offered example is kept with probability capacity/n.

    Source: Vitter 1985, Algorithm R, as used by experience replay (Riemer et al., arXiv
    1810.11910).
    """

    def admit(self, memory: ReplayMemory, offer: Offer, rng: Rng) -> ReplayMemory:
        slots = Slots.of(memory)
        for example, group in slots.each(offer):
            if not slots.full:
                slots.add(example, group)
                continue
            slot = int(rng.integers(slots.num_offered))
            if slot < slots.capacity:
                slots.replace(slot, example, group)
        return slots.memory()

    def draw(self, memory: ReplayMemory, count: int, rng: Rng) -> ExampleIds:
        return drawn_evenly(memory, count, rng)
