"""Where a client's tasks begin and end: as the server says, or as the client notices.

Either way methods hear of it through ``task_start`` and ``task_end``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from clients.data import class_mask
from clients.methods.outputs import answers
from clients.recall import losses_on
from clients.state_store import Watch
from strategies.protocols import ExampleIds
from strategies.rng import Rng

if TYPE_CHECKING:
    from clients.methods.base import ClientMethod
    from clients.training import LocalRun

WINDOW: Final = 64
"""Examples the signal is measured on, at most."""


class Boundaries(Protocol):
    """Calls the methods' hooks where a task begins or ends."""

    def open(self, run: LocalRun, methods: Sequence[ClientMethod]) -> None:
        """Before a round of local training, with the received state in the model."""
        ...

    def close(self, run: LocalRun, methods: Sequence[ClientMethod]) -> None:
        """After a round of local training."""
        ...


@dataclass(frozen=True, slots=True)
class Given:
    """A task is a stage of the run: it ends with the stage's last round."""

    def open(self, run: LocalRun, methods: Sequence[ClientMethod]) -> None:
        if run.state.task_index == run.task_index:
            return
        nothing = np.zeros(0, dtype=np.int64)
        run.state = replace(run.state, task_index=run.task_index, offered=nothing)
        for method in methods:
            method.task_start(run)

    def close(self, run: LocalRun, methods: Sequence[ClientMethod]) -> None:
        if run.work.first_step + run.work.steps == run.work.total_steps:
            for method in methods:
                method.task_end(run)


@dataclass(frozen=True, slots=True, kw_only=True)
class Noticed:
    """A task begins where the received model is suddenly at a loss about the client's examples.

    That is, where the mean ``signal`` on at most 64 of its new ones, over the classes that are
    answers here, is more than ``jump`` nats above the lowest since the last boundary.  The client
    counts its tasks itself.  The old task ends in that moment: its ``task_end`` sees the received
    model, the examples the signal was last measured on, and the classes held until then.  The last
    task of a run never ends.
    Source: GLFC, Dong et al. 2022, arXiv 2203.11473, task transition detection; departs: against
    the lowest level instead of the last one, so that a slow rise counts too; a lower bar than 1.2,
    which entropies over few classes cannot pass; by the loss where that is the signal.
    """

    signal: Signal
    jump: float
    rng: Rng

    def open(self, run: LocalRun, methods: Sequence[ClientMethod]) -> None:
        count, watch = run.state.task_index, run.state.watch
        window = self.rng.permutation(run.new_ids)[:WINDOW]
        level = self.signal(run, window)
        lowest = level if watch.lowest is None else watch.lowest
        begins = is_boundary(level, watch.lowest, self.jump)
        if begins and count >= 0:
            _end(run, methods)
        run.state = replace(
            run.state,
            task_index=count + begins,
            watch=Watch(
                lowest=level if begins else min(level, lowest),
                window=window,
                known=watch.held if begins else watch.known,
                held=np.union1d(watch.held, _classes(run)),
            ),
        )
        _count_own(run)
        run.noted |= {"boundary": float(begins), "boundary_level": level}
        if begins:
            for method in methods:
                method.task_start(run)

    def close(self, run: LocalRun, methods: Sequence[ClientMethod]) -> None:
        """Only the next task can tell that this one is over."""


def is_boundary(level: float, lowest: float | None, jump: float) -> bool:
    """Whether a task begins, given the lowest level of the one so far; None: there is none."""
    return lowest is None or level > lowest + jump


def entropies(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Of each row's softmax, in nats (n,); −inf marks what is no answer."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    weights = np.exp(shifted)
    chances = weights / weights.sum(axis=1, keepdims=True)
    logs = np.log(chances, out=np.zeros_like(chances), where=chances > 0)
    found: NDArray[np.float64] = -(chances * logs).sum(axis=1)
    return found


def mean_entropy(run: LocalRun, ids: ExampleIds) -> float:
    """How unsure the received model is, in nats."""
    return float(entropies(answers(run, ids).values).mean())


def mean_loss(run: LocalRun, ids: ExampleIds) -> float:
    """How wrong the received model is, in nats; of a causal LM per token."""
    return float(losses_on(run, ids).mean())


Signal = Callable[["LocalRun", ExampleIds], float]
SIGNALS: Final[Mapping[str, Signal]] = {"loss": mean_loss, "entropy": mean_entropy}


def _end(run: LocalRun, methods: Sequence[ClientMethod]) -> None:
    """Close the old task with what the client had of it."""
    here, watch = (run.new_ids, run.allowed), run.state.watch
    _count_own(run)
    held = class_mask(watch.held, len(run.allowed))
    run.new_ids, run.allowed = watch.window, run.model.device.tensor(held)
    for method in methods:
        method.task_end(run)
    run.new_ids, run.allowed = here


def _count_own(run: LocalRun) -> None:
    """Let methods and memory see the client's own count of tasks, not the run's."""
    run.task_index = run.memory_task = run.state.task_index
    run.known = run.state.watch.known


def _classes(run: LocalRun) -> NDArray[np.int64]:
    return np.unique(run.dataset.train.labels[run.new_ids]).astype(np.int64)
