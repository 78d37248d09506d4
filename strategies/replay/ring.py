"""The latest examples of every class and task."""

from __future__ import annotations

from dataclasses import dataclass

from strategies.protocols import ExampleIds, Offer, ReplayMemory
from strategies.replay.slots import Slots, drawn_evenly
from strategies.rng import Rng


@dataclass(frozen=True, slots=True)
class Ring:
    """Every class of every task has an equal ring in which a new example overwrites the oldest.

    Rings shrink as groups come in, so that all fit the capacity; a group that has offered less than
    its ring holds leaves the rest empty.  Deterministic.
    Source: ring buffers, Chaudhry et al. 2019, arXiv 1902.10486.
    """

    def admit(self, memory: ReplayMemory, offer: Offer, rng: Rng) -> ReplayMemory:
        slots = Slots.of(memory)
        for example, group in slots.each(offer):
            size = max(slots.capacity // len(slots.offered), 1)
            slots.add(example, group)
            for other in slots.offered:
                for slot in reversed(slots.of_group(other)[:-size]):
                    slots.remove(slot)
            while len(slots.ids) > slots.capacity:  # fewer slots than groups: the newest stay
                slots.remove(0)
        return slots.memory()

    def draw(self, memory: ReplayMemory, count: int, rng: Rng) -> ExampleIds:
        return drawn_evenly(memory, count, rng)
