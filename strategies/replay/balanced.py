"""As many of each class and task as there is room for."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from strategies.protocols import ExampleIds, Offer, ReplayMemory
from strategies.replay.slots import Slots, drawn_evenly
from strategies.rng import Rng


@dataclass(frozen=True, slots=True)
class Balanced:
    """A full memory makes room in its largest group; within a group all are kept alike.

    A group is a class of a task.  An example of a group that is among the largest replaces one of
    its own with probability (held)/(offered) of that group, any other takes the place of a random
    member of a largest group.  Rare classes are kept whole, frequent ones are reservoirs.
    Source: class-balancing reservoir sampling, Chrysakis and Moens 2020 (ICML), Alg. 1; departs:
    groups are classes of a task, and a group that has been largest once may grow again.
    """

    def admit(self, memory: ReplayMemory, offer: Offer, rng: Rng) -> ReplayMemory:
        slots = Slots.of(memory)
        for example, group in slots.each(offer):
            if not slots.full:
                slots.add(example, group)
                continue
            if not slots.capacity:
                continue
            sizes = Counter(slots.groups)
            largest = max(sizes.values())
            if sizes[group] == largest:
                if rng.integers(slots.offered[group]) < largest:
                    slots.replace(int(rng.choice(slots.of_group(group))), example, group)
                continue
            crowded = sorted(other for other, size in sizes.items() if size == largest)
            victim = crowded[int(rng.integers(len(crowded)))]
            slots.replace(int(rng.choice(slots.of_group(victim))), example, group)
        return slots.memory()

    def draw(self, memory: ReplayMemory, count: int, rng: Rng) -> ExampleIds:
        return drawn_evenly(memory, count, rng)
