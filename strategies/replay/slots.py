"""A memory while it is being filled: slots that are taken, given up and taken again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from strategies.protocols import ExampleIds, Offer, ReplayMemory
from strategies.rng import Rng

Group = tuple[int, int]
"""Task and class."""


@dataclass(slots=True)
class Slots:
    """The examples of a memory with their groups, in the order they came."""

    capacity: int
    ids: list[int]
    groups: list[Group]
    offered: Counter[Group] = field(default_factory=Counter)
    num_offered: int = 0

    @classmethod
    def of(cls, memory: ReplayMemory) -> Slots:
        """Take up where ``memory`` was left."""
        pairs = zip(memory.tasks.tolist(), memory.labels.tolist(), strict=True)
        counts = Counter({(t, c): n for t, c, n in memory.offered.tolist()})
        return cls(memory.capacity, memory.ids.tolist(), list(pairs), counts, memory.num_offered)

    def each(self, offer: Offer) -> Iterator[tuple[int, Group]]:
        """The offered examples one after another, each counted as offered."""
        for example, label in zip(offer.ids.tolist(), offer.labels.tolist(), strict=True):
            group = (offer.task, label)
            self.num_offered += 1
            self.offered[group] += 1
            yield example, group

    @property
    def full(self) -> bool:
        """Whether every slot is taken."""
        return len(self.ids) >= self.capacity

    def add(self, example: int, group: Group) -> None:
        """Take a free slot."""
        self.ids.append(example)
        self.groups.append(group)

    def replace(self, slot: int, example: int, group: Group) -> None:
        """Give up what is in ``slot``."""
        self.ids[slot], self.groups[slot] = example, group

    def remove(self, slot: int) -> None:
        """Free a slot."""
        del self.ids[slot], self.groups[slot]

    def of_group(self, group: Group) -> list[int]:
        """The slots a group holds, oldest first."""
        return [slot for slot, held in enumerate(self.groups) if held == group]

    def memory(self) -> ReplayMemory:
        """As it is kept."""
        pairs = np.array(self.groups, dtype=np.int64).reshape(-1, 2)
        rows = [(task, label, count) for (task, label), count in sorted(self.offered.items())]
        return ReplayMemory(
            capacity=self.capacity,
            ids=np.array(self.ids, dtype=np.int64),
            tasks=pairs[:, 0].copy(),
            labels=pairs[:, 1].copy(),
            num_offered=self.num_offered,
            offered=np.array(rows, dtype=np.int64).reshape(-1, 3),
        )


def drawn_evenly(memory: ReplayMemory, count: int, rng: Rng) -> ExampleIds:
    """``min(count, n)`` distinct ids, all alike."""
    return rng.choice(memory.ids, size=min(count, len(memory.ids)), replace=False)
