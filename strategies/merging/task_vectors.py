"""Every task is learnt from the base; the model is the base and a share of each task's vector."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Final

import numpy as np
from annotated_types import Gt

from strategies.aggregation.merged import grown
from strategies.lora import Factors, is_factor, is_merged
from strategies.merging.folding import learnt_pairs, restarted
from strategies.protocols import Merged, MergeView
from strategies.types import HEAD, Array, ParamKey, State, Tensors

_TASK: Final = "task-{:04d}|"


@dataclass(frozen=True, slots=True)
class TaskVectors:
    """θ = θ₀ + λ Σᵢ τᵢ, τᵢ = θᵢ − θ₀ being what task i changed; λ is ``coefficient``.

    Each task starts from θ₀ with fresh factors, and what it gives is kept as its vector: a pair of
    factors per low-rank group, the offset of a dense one.  At a task's end the model is put
    together from all vectors so far, low-rank ones as frozen pairs.  The head is no vector: it
    goes on from task to task as trained, for its rows belong to different classes.
    Source: task arithmetic, arXiv 2212.04089, sec. 2; departs: one λ, given instead of searched;
    the head is left alone.  Merging ``atlas`` learns a coefficient for every task and group.
    """

    changes_base: ClassVar[bool] = True
    coefficient: Annotated[float, Gt(0)] = 0.5

    def task_start(self, tensors: Tensors) -> Tensors:
        return {k: v for k, v in tensors.items() if is_factor(k) or k.group == HEAD}

    def task_end(self, view: MergeView, tensors: Tensors, state: State) -> Merged:
        bank = {**state, **_remembered(view.task_index, tensors)}
        model = restarted(view, self.task_start(tensors))
        for index in range(view.task_index + 1):
            model = self._with(model, vector_of(bank, index))
        return Merged(tensors=model, state=bank)

    def _with(self, model: dict[ParamKey, Array], vector: Tensors) -> dict[ParamKey, Array]:
        """The model and λ times one task's vector."""
        for group, pair in learnt_pairs(vector).items():
            model = grown(model, group, Factors(pair.a, self.coefficient * pair.b))
        for key, value in vector.items():
            if not is_factor(key):
                share = (self.coefficient * value).astype(np.float32)
                model[key] = model[key] + share if key in model else share
        return model


def vectors_in(state: State) -> State:
    """The vectors of all tasks so far, out of what a merger remembers."""
    return {name: value for name, value in state.items() if name.startswith("task-")}


def vector_of(bank: State, task_index: int) -> dict[ParamKey, Array]:
    """What a task changed, unscaled: factors of low-rank groups, offsets of dense ones."""
    mark = _TASK.format(task_index)
    return {
        ParamKey.parse(name.removeprefix(mark)): value
        for name, value in bank.items()
        if name.startswith(mark)
    }


def _remembered(task_index: int, tensors: Tensors) -> dict[str, Array]:
    learnt = learnt_pairs(tensors)
    return {
        _TASK.format(task_index) + key.text: value
        for key, value in tensors.items()
        if not is_merged(key) and key.group != HEAD and (key.group in learnt or not is_factor(key))
    }
