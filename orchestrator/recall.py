"""What the server makes of forgetting: which groups drift, which tasks fade, how much to replay."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

import numpy as np

from orchestrator.schedule import Step
from orchestrator.sections import Steering
from strategies.protocols import ReplayView
from strategies.types import (
    Array,
    ClientProfile,
    GroupName,
    Observation,
    State,
)

RECALL: Final = "recall"
"""Name of what is remembered: drift per group and loss rise per task, as (sum, count)."""
_DRIFT, _RISE = "drift|", "rise|"


def observed(state: State, step: Step, seen: Sequence[Observation]) -> State:
    """``state`` with what the clients of a training round reported.

    Drift in the first rounds of tasks is added up over the run.  The loss rise of a task is what
    was reported last, summed over clients.
    """
    after: dict[str, Array] = dict(state)
    for group, drift in drifts(seen) if step.round_index == 0 else ():
        after[_DRIFT + group] = after.get(_DRIFT + group, np.zeros(2)) + np.array([drift, 1.0])
    sums = dict[str, Array]()
    for observation in seen:
        for task in observation.remembered:
            name = f"{_RISE}{task.task_index}"
            pair = np.array([task.loss_rise, float(task.num_examples)])
            sums[name] = sums.get(name, np.zeros(2)) + pair
    return after | sums


def drifts(seen: Iterable[Observation]) -> Iterator[tuple[GroupName, float]]:
    """Client by client, each group it trained with the root mean square of its values' moves."""
    for observation in seen:
        for key, squared in observation.evidence.items():
            if key.part == "drift":
                yield key.group, math.sqrt(float(squared))


def view_of(state: State) -> ReplayView:
    """What decides on a replay round."""
    means = {name: float(pair[0] / max(pair[1], 1.0)) for name, pair in state.items()}
    return ReplayView(
        sensitivity={GroupName(name): mean for name, mean in _under(means, _DRIFT).items()},
        rises={int(name): mean for name, mean in _under(means, _RISE).items()},
    )


def share_of(steering: Steering, most: float, client: ClientProfile, state: State) -> float:
    """The part of a client's batches that is replayed: more where its past fades more.

    ``lowest + (most − lowest) · min(1, F / full_at)`` with F the mean loss rise of the tasks it has
    examples of, in nats, weighted by how many.
    """
    rises = view_of(state).rises
    # Tasks beyond the stream's are those that a client has counted itself.
    counts = {task: client.num_train[task] for task in rises if task < len(client.num_train)}
    total = sum(counts.values())
    faded = sum(max(rises[task], 0.0) * counts[task] for task in counts) / total if total else 0.0
    lowest = min(steering.lowest_share, most)
    return lowest + (most - lowest) * min(1.0, faded / steering.full_at_nats)


def _under(means: Mapping[str, float], prefix: str) -> dict[str, float]:
    return {n.removeprefix(prefix): mean for n, mean in means.items() if n.startswith(prefix)}
