"""Heads that are solved from sums: who is asked for which examples, and the fold of what comes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from orchestrator.config import RunConfig
from orchestrator.federation import Federation
from orchestrator.schedule import Step
from strategies.errors import WireError
from strategies.protocols import HeadShape, HeadSolver
from strategies.types import (
    HEAD,
    Array,
    Assignment,
    ClientFailure,
    ClientId,
    FailureReason,
    GlobalState,
    ParamKey,
    Probe,
    State,
    Update,
)

SUMS, BOOK = "head", "head-book"
"""Names in a state's memories: what the solver remembers, and whose examples are in it."""
_STEP: Final = "step"
_BATCH_SIZE: Final = 128
_WEIGHT: Final = ParamKey(HEAD, "weight")


def questions(
    config: RunConfig, federation: Federation, state: GlobalState, step: Step
) -> dict[ClientId, Probe]:
    """What each client is asked to sum before the head is solved anew.

    Its examples of the tasks seen so far that are not in the sums.  Where the encoder has moved
    since, the sums are of features that no longer exist: then those of the tasks at hand and, for
    older tasks, what its memory holds.
    """
    solver = config.head_solver()
    if solver is None:
        return {}
    moved, book = encoder_moved(state), state.memories.get(BOOK, {})
    asked = dict[ClientId, Probe]()
    for client in federation.clients:
        known = () if moved else book.get(client.client_id, np.zeros(0)).tolist()
        new = step.tasks_of(client.client_id)
        met = (*step.met_by(client.client_id), *new)
        wanted = new if moved else tuple(task for task in met if task not in known)
        tasks = tuple(task for task in wanted if client.num_train[task])
        past = moved and any(client.num_train[task] for task in met)
        if tasks or past:
            asked[client.client_id] = Probe(
                tasks=tasks,
                statistics=solver.statistics,
                batches=None,
                batch_size=_BATCH_SIZE,
                learning_rate=config.learning.learning_rate,
                remembered=moved,
                precision=solver.precision,
            )
    return asked


def encoder_moved(state: GlobalState) -> bool:
    """Whether anything below the head has changed since the sums were made."""
    summed_at = state.memories.get(BOOK, {}).get(_STEP)
    if summed_at is None:
        return False
    return any(
        since > int(summed_at)
        for name, since in state.changed.items()
        if ParamKey.parse(name).group != HEAD
    )


@dataclass(slots=True, kw_only=True)
class HeadSums:
    """The sums of a step, reply by reply."""

    solver: HeadSolver
    shape: HeadShape
    seen: tuple[int, ...]
    sums: State
    book: dict[str, Array]

    @classmethod
    def of(
        cls, config: RunConfig, federation: Federation, state: GlobalState, step: Step
    ) -> HeadSums | None:
        """Where the sums of ``state`` are to be taken up; None in a step without any."""
        solver = config.head_solver()
        if solver is None or step.kind != "head":
            return None
        fresh = encoder_moved(state)
        num_classes, width = federation.groups()[HEAD].parts["weight"]
        return cls(
            solver=solver,
            shape=HeadShape(num_classes=num_classes, width=width),
            seen=step.seen,
            sums={} if fresh else state.memories.get(SUMS, {}),
            book={} if fresh else dict(state.memories.get(BOOK, {})),
        )

    def absorb(
        self, result: Update | ClientFailure, assignment: Assignment
    ) -> Update | ClientFailure:
        """Add a client's sums, which the update then no longer carries; or why they are bad."""
        if isinstance(result, ClientFailure) or assignment.probe is None:
            return result
        try:
            self.sums = self.solver.absorb(self.sums, result.sketches, self.shape)
        except (KeyError, WireError) as error:
            return ClientFailure(
                assignment_id=assignment.assignment_id,
                client_id=assignment.client_id,
                reason=FailureReason.MALFORMED,
                detail=f"sums for the head: {error}",
            )
        before = self.book.get(assignment.client_id, np.zeros(0, np.int64))
        tasks = self.seen if assignment.probe.remembered else assignment.probe.tasks
        self.book[assignment.client_id] = np.union1d(before, tasks).astype(np.int64)
        return replace(result, sketches={})

    def solved(self, state: GlobalState) -> GlobalState:
        """``state`` with the head that all sums give; as it was while there are none."""
        if not self.sums:
            return state
        rows, sums = self.solver.solve(self.sums)
        book = {**self.book, _STEP: np.array(state.step_index)}
        return replace(
            state,
            tensors={**state.tensors, _WEIGHT: rows},
            memories={**state.memories, SUMS: sums, BOOK: book},
        )
