"""What a plan wants reported of local training, besides the update itself."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from clients.answering import Listener, Progress
from clients.device import host
from clients.methods.base import ClientMethod
from strategies.lora import keys_of
from strategies.protocols import ExampleIds
from strategies.types import LORA_A, LORA_B, Array, GroupName, ParamKey, Tensors

if TYPE_CHECKING:
    from torch import Tensor

    from clients.training import Draw, LocalRun

_SMOOTHING: Final = 0.85  # β₁ and β₂ of AdaLoRA


@dataclass(slots=True)
class Announced(ClientMethod):
    """Tells ``listener`` of every local step; the last of the methods, so it sees the whole batch.

    A step's time is from its batch being drawn to its parameters being new.
    """

    listener: Listener
    began: float = 0.0
    drawn: ExampleIds = field(default_factory=lambda: np.empty(0, dtype=np.int64))

    def batch(self, run: LocalRun, draw: Draw) -> Draw:
        self.began, self.drawn = time.monotonic(), np.concatenate(draw)
        return draw

    def after_step(self, run: LocalRun) -> None:
        of_text = run.recipe.task != "image-classification"
        tokens = int(run.dataset.train.lengths[self.drawn].sum()) if of_text else 0
        self.listener(
            Progress(
                phase="train",
                step=run.step + 1,
                steps=run.work.steps,
                seconds=time.monotonic() - self.began,
                examples=len(self.drawn),
                tokens=tokens,
            )
        )


@dataclass(slots=True)
class Sensitivity(ClientMethod):
    """AdaLoRA's importance of each rank-one component, smoothed over the local steps.

    I = |θ · ∂L/∂θ| per entry; Ī and its uncertainty Ū are exponential means, an entry's score is
    Ī·Ū, a component's the mean score of its row of A plus that of its column of B.
    Source: AdaLoRA, arXiv 2303.10512, eq. 8 to 11; departs: without Λ, whose part B has.
    """

    mean: dict[ParamKey, Tensor] = field(default_factory=dict)
    uncertainty: dict[ParamKey, Tensor] = field(default_factory=dict)

    def grad(self, run: LocalRun) -> None:
        for key, parameter in run.trainable.items():
            if key.part not in (LORA_A, LORA_B) or parameter.grad is None:
                continue
            now = (parameter.detach() * parameter.grad).abs()
            mean = self.mean.get(key, torch.zeros_like(now))
            spread = self.uncertainty.get(key, torch.zeros_like(now))
            mean = _SMOOTHING * mean + (1 - _SMOOTHING) * now
            self.mean[key] = mean
            self.uncertainty[key] = _SMOOTHING * spread + (1 - _SMOOTHING) * (now - mean).abs()

    def sketches(self) -> dict[ParamKey, Array]:
        """``sensitivity`` per group, (rank,)."""
        found = dict[ParamKey, Array]()
        for key, mean in self.mean.items():
            score = (mean * self.uncertainty[key]).mean(dim=1 if key.part == LORA_A else 0)
            name = ParamKey(key.group, "sensitivity")
            found[name] = found.get(name, 0) + host(score)
        return found


def component_norms(sent: Tensors, trained: Tensors) -> dict[ParamKey, Array]:
    """Per low-rank group ‖Aᵢ‖² and ‖Bᵢ‖² before, then after training, (4, rank)."""
    found = dict[ParamKey, Array]()
    for group in dict.fromkeys(key.group for key in trained if key.part in (LORA_A, LORA_B)):
        rows = [*_squares(sent, group), *_squares({**sent, **trained}, group)]
        found[ParamKey(group, "component-norms")] = np.stack(rows).astype(np.float32)
    return found


def _squares(tensors: Tensors, group: GroupName) -> tuple[Array, Array]:
    key_a, key_b = keys_of(group)
    return np.square(tensors[key_a]).sum(axis=1), np.square(tensors[key_b]).sum(axis=0)
