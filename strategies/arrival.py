"""When each client meets each task of the stream.

A *stage* is what lies between two rows of the accuracy matrix.  Where all clients meet the tasks
together, stage i is task i; elsewhere a client may be at another task than its neighbour, or at
none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from strategies.recipe import StreamRecipe
from strategies.rng import rng_for
from strategies.types import ClientId


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrivals:
    """Per client the task of each stage, None where it has none; every task comes exactly once."""

    num_stages: int
    tasks: Mapping[ClientId, tuple[int | None, ...]]

    def at(self, client: ClientId, stage: int) -> tuple[int, ...]:
        """The task that ``client`` meets at ``stage``, if any."""
        task = self.tasks[client][stage]
        return () if task is None else (task,)

    def before(self, client: ClientId, stage: int) -> tuple[int, ...]:
        """The tasks that ``client`` has met before ``stage``, ascending."""
        return tuple(sorted(task for task in self.tasks[client][:stage] if task is not None))

    def stage_of(self, client: ClientId, task: int) -> int:
        """When ``client`` meets ``task``."""
        return self.tasks[client].index(task)


def arrivals(
    recipe: StreamRecipe, clients: Sequence[ClientId], num_tasks: int, seed: int
) -> Arrivals:
    """The run's timetable, from its recipe and seed alone.

    ``together``: task i at stage i for all.  ``shuffled``: an order per client, drawn evenly and
    independently.  ``staggered``: task i at stage i + (k mod lag) for the client at place k.
    """
    lag, everything = recipe.lag or 1, range(num_tasks)
    timetable = dict[ClientId, tuple[int | None, ...]]()
    for place, client in enumerate(clients):
        if recipe.arrival == "shuffled":
            order = rng_for(seed, "arrival", client).permutation(num_tasks)
            timetable[client] = tuple(order.tolist())
        else:
            late = place % lag
            timetable[client] = (None,) * late + (*everything,) + (None,) * (lag - 1 - late)
    return Arrivals(num_stages=num_tasks + lag - 1, tasks=timetable)
