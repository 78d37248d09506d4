"""Keep each task's update out of the directions earlier tasks' inputs lie in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from annotated_types import Ge, Gt, Interval

from strategies.lora import Matrix
from strategies.merging.folding import folded
from strategies.protocols import Merged, MergeView, Question
from strategies.types import LORA_A, Array, GroupName, ParamKey, State, Tensors

_ROUNDING = float(np.finfo(np.float32).eps)  # of the sketches' norm; a direction below it is none


@dataclass(frozen=True, slots=True)
class Fot:
    """After every round ΔW ← ΔW (I − UUᵀ) for the task's own ΔW; U holds earlier tasks' inputs.

    Pairs are folded at each task's end, so the task's own update is B·A and this is A ← A(I − UUᵀ).
    Then clients send what their modules' inputs look like, and U grows by the leading directions
    of what it does not hold yet, until it holds a share ``energy`` + task · ``energy_increment`` of
    all clients' input energy.  Only low-rank groups are protected: a head trained on is not.
    Source: FOT, arXiv 2309.01289, Alg. 1 and 2; departs: clients send the leading ``components``
    singular vectors of the inputs of ``batches`` batches, not a Gaussian sketch of all, and the
    server removes what is known; shares are of energy (norms squared), so that U reaches the share;
    LoRA instead of the weights.
    """

    changes_base: ClassVar[bool] = True
    energy: Annotated[float, Interval(gt=0, le=1)] = 0.95
    energy_increment: Annotated[float, Ge(0)] = 0.001  # per task
    batches: Annotated[int, Gt(0)] = 4
    components: Annotated[int, Gt(0)] = 64  # per client and group

    def question(self, task_index: int, round_index: int) -> Question | None:
        return Question(
            statistics=("input-spectrum",), batches=self.batches, max_rank=self.components
        )

    def after_round(
        self, view: MergeView, before: Tensors, tensors: Tensors, state: State
    ) -> Merged:
        return Merged(tensors=_outside(tensors, state), state=state)

    def task_end(self, view: MergeView, tensors: Tensors, state: State) -> Merged:
        share = min(1.0, self.energy + view.task_index * self.energy_increment)
        bases = dict(state)
        for group in dict.fromkeys(key.group for key in tensors if key.part == LORA_A):
            key = ParamKey(group, "input-spectrum")
            sketches = [found[key] for found in view.evidence.values() if key in found]
            if sketches:
                stack = np.vstack(sketches).astype(np.float64)
                bases[_name(group)] = extended(basis_of(state, group), stack, share)
        # The fresh A starts outside as well; B is zero, so the model does not notice.
        return Merged(tensors=_outside(folded(view, tensors), bases), state=bases)


def basis_of(state: State, group: GroupName) -> Array | None:
    """U (d_in, m) of a group, its columns orthonormal; None before the first task's end."""
    return state.get(_name(group))


def extended(basis: Array | None, stack: Matrix, share: float) -> Array:
    """The basis with as many directions more as ``share`` of the energy of ``stack`` takes.

    Shapes: basis (d_in, m), stack (n, d_in) → (d_in, m + new).  With ρ the share of the energy that
    the basis does not hold, the new directions are the leading ones of the rest that hold
    (ρ − (1 − share)) / ρ of it.
    """
    known = np.zeros((stack.shape[1], 0)) if basis is None else basis.astype(np.float64)
    rest = stack - (stack @ known) @ known.T
    _, values, vectors = np.linalg.svd(rest, full_matrices=False)
    energies, total = np.square(values), float(np.square(stack).sum())
    left = float(energies.sum())
    wanted = left - (1 - share) * total
    if wanted <= 0:
        return known.astype(np.float32)
    count = int(np.searchsorted(np.cumsum(energies), wanted)) + 1
    real = int(np.sum(values > _ROUNDING * np.sqrt(total)))
    grown, _ = np.linalg.qr(np.hstack([known, vectors[: min(count, real)].T]))
    return np.asarray(grown.astype(np.float32))


def _outside(tensors: Tensors, bases: State) -> dict[ParamKey, Array]:
    """Every A without its part in the span of its group's basis."""
    after = dict(tensors)
    for key, a in tensors.items():
        basis = basis_of(bases, key.group) if key.part == LORA_A else None
        if basis is not None:
            u = basis.astype(np.float64)
            after[key] = (a - (a @ u) @ u.T).astype(np.float32)
    return after


def _name(group: GroupName) -> str:
    return f"{group}|basis"
