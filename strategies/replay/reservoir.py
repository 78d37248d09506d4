"""Uniform memory of a stream of unknown length."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from strategies.protocols import ExampleIds, ReplayMemory
from strategies.rng import Rng


@dataclass(frozen=True, slots=True)
class Reservoir:
    """After n offers every offered example is kept with probability capacity/n.

    Source: Vitter 1985, Algorithm R, as used by experience replay (Riemer et al., arXiv
    1810.11910).
    """

    def admit(self, memory: ReplayMemory, ids: ExampleIds, task: int, rng: Rng) -> ReplayMemory:
        kept, tasks, offered = list(memory.ids), list(memory.tasks), memory.num_offered
        for example in ids:
            offered += 1
            if len(kept) < memory.capacity:
                kept.append(example)
                tasks.append(np.int64(task))
                continue
            slot = int(rng.integers(offered))
            if slot < memory.capacity:
                kept[slot], tasks[slot] = example, np.int64(task)
        return replace(
            memory,
            ids=np.array(kept, dtype=np.int64),
            tasks=np.array(tasks, dtype=np.int64),
            num_offered=offered,
        )

    def draw(self, memory: ReplayMemory, count: int, rng: Rng) -> ExampleIds:
        return rng.choice(memory.ids, size=min(count, len(memory.ids)), replace=False)
