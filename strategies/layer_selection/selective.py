"""Selective layer fine-tuning: gradient energy, and clients that agree."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from annotated_types import Ge
from numpy.typing import NDArray

from strategies.layer_selection.blocks import (
    affordable,
    block_scores,
    from_the_top,
    in_order,
    with_common,
)
from strategies.protocols import Question
from strategies.rng import Rng
from strategies.types import RoundView, Selection

Masks = NDArray[np.bool_]
_MAX_SWEEPS = 50


@dataclass(frozen=True, slots=True)
class Selective:
    """Maximises Σᵢₗ mᵢ(l)·‖gᵢₗ‖² − (λ/2)·Σᵢⱼ ‖mᵢ − mⱼ‖₁ with at most Rᵢ blocks for client i.

    The first term is the gradient energy of what is trained, the second makes clients agree on
    what that is: blocks that few choose are averaged over few.  λ is ``agreement`` times the median
    over blocks of the clients' mean energy, so that it does not depend on the scale of the loss.
    Rᵢ is ``blocks``, or as many as the client's deadline allows.
    Source: arXiv 2408.15600, eq. of the selection problem; departs: solved by multi-start
    coordinate ascent instead of a mixed-integer program, and λ is relative.
    """

    blocks: Annotated[int, Ge(1)] = 2
    agreement: Annotated[float, Ge(0)] = 0.1
    batches: Annotated[int, Ge(1)] = 2
    every: Annotated[int, Ge(1)] = 1
    """Rounds of a task from one probe to the next."""

    def question(self, task_index: int, round_index: int) -> Question | None:
        if round_index % self.every:
            return None
        return Question(statistics=("gradient-energy",), batches=self.batches)

    def select(self, view: RoundView, rng: Rng) -> Selection:
        scores = block_scores(view, "gradient-energy")
        if scores is None:
            return from_the_top(view, self.blocks)
        clients = in_order(view)
        energy = np.stack([scores[client.client_id] for client in clients])
        budgets = [affordable(view, client, self.blocks) for client in clients]
        weight = self.agreement * float(np.median(energy.mean(axis=0)))
        masks = solve(energy, np.array(budgets), weight)
        return {
            client.client_id: with_common(view, np.flatnonzero(mask).tolist())
            for client, mask in zip(clients, masks, strict=True)
        }


def objective(masks: Masks, energy: NDArray[np.float64], weight: float) -> float:
    """The value of a choice: masks (N, L), energies (N, L)."""
    chosen = masks.sum(axis=0)  # n_l clients have block l, so n_l (N − n_l) pairs differ in it
    return float((masks * energy).sum() - weight * (chosen * (len(masks) - chosen)).sum())


def solve(energy: NDArray[np.float64], budgets: NDArray[np.int64], weight: float) -> Masks:
    """The best masks (N, L) that coordinate ascent finds from several starts.

    Starts: everybody's own best blocks; and, for every q, the q blocks with the most energy in all.
    A sweep gives each client the blocks with the largest gain ‖gᵢₗ‖² + λ(2nₗ − (N − 1)), nₗ counted
    over the others, as far as gains are positive.
    """
    starts = [np.stack([_first(row, r) for row, r in zip(energy, budgets, strict=True)])]
    total = energy.sum(axis=0)
    starts += [
        np.stack([_first(total, min(q, r)) for r in budgets]) for q in range(int(budgets.max()) + 1)
    ]
    ends = [_ascended(start, energy, budgets, weight) for start in starts]
    best = max(ends, key=lambda masks: objective(masks, energy, weight))
    return _never_idle(best, energy)


def _first(scores: NDArray[np.float64], count: int) -> NDArray[np.bool_]:
    mask = np.zeros(len(scores), dtype=np.bool_)
    mask[np.argsort(-scores, kind="stable")[:count]] = True
    return mask


def _ascended(
    masks: Masks, energy: NDArray[np.float64], budgets: NDArray[np.int64], weight: float
) -> Masks:
    masks, value = masks.copy(), objective(masks, energy, weight)
    for _ in range(_MAX_SWEEPS):
        for client, row in enumerate(energy):
            others = masks.sum(axis=0) - masks[client]
            gains = row + weight * (2 * others - (len(masks) - 1))
            masks[client] = _first(gains, int(budgets[client])) & (gains > 0)
        risen = objective(masks, energy, weight)
        if risen <= value + 1e-12 * abs(value):
            break
        value = risen
    return masks


def _never_idle(masks: Masks, energy: NDArray[np.float64]) -> Masks:
    """A client whom agreement left with nothing trains its own best block."""
    masks = masks.copy()
    for client in np.flatnonzero(~masks.any(axis=1)):
        masks[client, int(np.argmax(energy[client]))] = True
    return masks
