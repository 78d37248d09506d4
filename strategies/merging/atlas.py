"""Task vectors with a coefficient for every task and group, learnt on what clients remember."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, ClassVar, Final

import numpy as np
from annotated_types import Ge, Gt, Interval

from strategies.lora import Factors, is_merged, merged_keys, num_merged
from strategies.merging.coefficients import CURVATURE, LEAST, MOST, Look, Search, look_of
from strategies.merging.folding import learnt_pairs
from strategies.merging.task_vectors import TaskVectors, vector_of, vectors_in
from strategies.protocols import Merged, MergeView, Question
from strategies.types import Array, GroupName, ParamKey, State, Tensors

_SEARCH: Final = "search|"


@dataclass(frozen=True, slots=True)
class Atlas:
    """θ = θ₀ + Σᵢ Σ_g c_ig τ_ig: a coefficient for each low-rank group g of each task's vector τᵢ.

    At a task's end all c are ``coefficient``, which is merging ``task-vectors``.  Then clients sum
    up, over what they remember and ``batches`` batches of new examples, loss, gradient and Fisher
    information in the c, and the server takes a damped Newton step; this ``probes`` times, the last
    of which only measures.  The c with the least loss measured stay, so never worse ones than all
    the same.  Pairs stay apart however many there are; dense groups keep ``coefficient``, the head
    is as trained.  Needs a client method that fills the memory.
    Source: aTLAS, arXiv 2407.02880, task addition by anisotropic scaling; departs: second-order
    steps from sums over clients instead of AdamW on pooled data; c starts at ``coefficient``, not
    at 0, and stays in 0.01-2; low-rank groups alone.
    """

    changes_base: ClassVar[bool] = True
    coefficient: Annotated[float, Interval(ge=LEAST, le=MOST)] = 0.5
    probes: Annotated[int, Ge(2)] = 3  # per task; one more than steps
    batches: Annotated[int, Gt(0)] = 4
    damping: Annotated[float, Gt(0)] = 0.1  # of the mean curvature; ten times as much after a miss

    def inquiry(self) -> Question:
        return Question(statistics=(CURVATURE,), batches=self.batches, remembered=True)

    def task_start(self, tensors: Tensors) -> Tensors:
        return self._uniform().task_start(tensors)

    def task_end(self, view: MergeView, tensors: Tensors, state: State) -> Merged:
        whole = self._uniform().task_end(view, tensors, vectors_in(state))
        start = np.full(len(_pairs(whole.state)), self.coefficient)
        search = Search.starting(start, self.damping)
        return Merged(
            tensors=_scaled(whole.tensors, whole.state, start),
            state={**whole.state, **_packed(search)},
        )

    def refine(self, view: MergeView, tensors: Tensors, state: State) -> Merged:
        bank, search = vectors_in(state), _unpacked(state)
        search = search.after(look_of(view.evidence, search.trial))
        if search.looks < self.probes:
            return Merged(
                tensors=_scaled(tensors, bank, search.trial), state={**bank, **_packed(search)}
            )
        ended = search.ended()
        return Merged(
            tensors=_scaled(tensors, bank, ended), state={**bank, _SEARCH + "trial": ended}
        )

    def _uniform(self) -> TaskVectors:
        return TaskVectors(coefficient=self.coefficient)


def coefficients_of(state: State) -> dict[tuple[int, GroupName], float]:
    """By task and group, the coefficients a model was put together with last."""
    trial = state.get(_SEARCH + "trial", np.zeros(0))
    pairs = _pairs(vectors_in(state))
    return {
        (task, group): float(c) for (group, task, _), c in zip(pairs, trial.tolist(), strict=True)
    }


def _pairs(bank: State) -> list[tuple[GroupName, int, Factors]]:
    """Every pair of every task's vector, by group and then by task."""
    tasks = sorted({int(name.split("|")[0].removeprefix("task-")) for name in bank})
    found = [
        (group, task, pair)
        for task in tasks
        for group, pair in learnt_pairs(vector_of(bank, task)).items()
    ]
    return sorted(found, key=lambda each: each[:2])


def _scaled(tensors: Tensors, bank: State, coefficients: Array) -> dict[ParamKey, Array]:
    """The model with every pair of the bank, times its coefficient, for the frozen pairs it has."""
    model = {key: value for key, value in tensors.items() if not is_merged(key)}
    for (group, _, pair), c in zip(_pairs(bank), coefficients.tolist(), strict=True):
        values = pair.a, (c * pair.b).astype(np.float32)
        model |= zip(merged_keys(group, num_merged(model, group)), values, strict=True)
    return model


def _packed(search: Search) -> dict[str, Array]:
    parts = {"trial": search.trial, "damping": search.damping, "looks": search.looks}
    if search.best:
        best = search.best
        parts |= {f"best.{field.name}": getattr(best, field.name) for field in fields(best)}
    return {_SEARCH + name: value for name, value in parts.items()}


def _unpacked(state: State) -> Search:
    found = {n.removeprefix(_SEARCH): v for n, v in state.items() if n.startswith(_SEARCH)}
    best = {n.removeprefix("best."): v for n, v in found.items() if n.startswith("best.")}
    return Search(
        trial=found["trial"],
        damping=found["damping"],
        looks=found["looks"],
        best=Look(**best) if best else None,
    )
