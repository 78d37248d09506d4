"""The networks of AirLLM: an actor that gives a code, a critic, a DDIM that turns codes into ranks.

torch is imported when something is computed: a server that uses another policy never loads it.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Final

import numpy as np

from strategies.rng import Rng
from strategies.types import Array

if TYPE_CHECKING:
    import torch
    from torch import Tensor

CODE: Final = 16  # dimensions of the coarse action
_HIDDEN: Final = 128
_TIME: Final = 32  # dimensions of the embedding of a diffusion step
_GUIDANCE: Final = 1.5
_DROPPED: Final = 0.1  # share of conditions left out in training, for classifier-free guidance

Parameters = dict[str, "Tensor"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Dimensions of state, code and rank vector."""

    state: int
    action: int

    def layers(self) -> dict[str, tuple[int, ...]]:
        """Widths of each network, from input to output."""
        denoiser_input = self.action + CODE + _TIME
        return {
            "actor": (self.state, _HIDDEN, _HIDDEN, CODE),
            "critic": (self.state, _HIDDEN, _HIDDEN, 1),
            "denoiser": (denoiser_input, _HIDDEN, _HIDDEN, self.action),
        }


def initial_parameters(sizes: Sizes, rng: Rng) -> dict[str, Array]:
    """Orthogonal-like small weights; the actor starts near zero, so that codes start as noise."""
    arrays: dict[str, Array] = {"actor/log_std": np.full(CODE, -0.5, dtype=np.float32)}
    for name, widths in sizes.layers().items():
        for index, (below, above) in enumerate(pairwise(widths)):
            last = index == len(widths) - 2
            size = np.sqrt(2 / below) * (0.01 if last and name != "denoiser" else 1.0)
            weight = rng.normal(size=(above, below)) * size
            arrays[f"{name}/{index}/weight"] = weight.astype(np.float32)
            arrays[f"{name}/{index}/bias"] = np.zeros(above, dtype=np.float32)
    return arrays


@dataclass(frozen=True, slots=True, kw_only=True)
class Diffusion:
    """A DDIM over rank vectors x ∈ [−1, 1]ⁿ.

    ``steps`` diffusion steps with β from 1e-4 to 0.02, linear in √β; ``sampled`` of them are used.
    Source: DDIM, arXiv 2010.02502, η = 0; classifier-free guidance, arXiv 2207.12598.
    """

    steps: int
    sampled: int

    def kept(self) -> Array:
        """ᾱ per step: the share of the signal's energy that is left."""
        betas = np.linspace(1e-4**0.5, 0.02**0.5, self.steps, dtype=np.float64) ** 2
        return np.asarray(np.cumprod(1 - betas))

    def sample(self, parameters: Parameters, code: Tensor, noise: Tensor) -> Tensor:
        """From ``noise`` (K, n) to rank vectors (K, n), given codes (K, 16)."""
        import torch

        kept, x = self.kept(), noise
        times = np.linspace(self.steps - 1, 0, self.sampled).round().astype(int)
        for index, time in enumerate(times):
            here = float(kept[time])
            there = float(kept[times[index + 1]]) if index + 1 < len(times) else 1.0
            now = torch.full((len(x),), int(time))
            free = self.clean(parameters, x, code * 0, now)
            guided = free + _GUIDANCE * (self.clean(parameters, x, code, now) - free)
            clean = guided.clamp(-1, 1)
            epsilon = (x - here**0.5 * clean) / (1 - here) ** 0.5
            x = there**0.5 * clean + (1 - there) ** 0.5 * epsilon
        return x.clamp(-1, 1)

    def clean(self, parameters: Parameters, x: Tensor, code: Tensor, times: Tensor) -> Tensor:
        """What the network takes the noiseless rank vectors to be, each row at its own step.

        The network gives x₀ instead of the noise: at steps where little of x₀ is left, the noise
        would have to be known to more digits than it learns.
        """
        import torch

        rates = torch.exp(torch.linspace(0, -8, _TIME // 2))
        angles = times[:, None] * rates
        inputs = torch.cat([x, code, angles.sin(), angles.cos()], dim=1)
        return forward(parameters, "denoiser", inputs)

    def loss(
        self,
        parameters: Parameters,
        x: Tensor,
        code: Tensor,
        weight: Tensor,
        generator: torch.Generator,
    ) -> Tensor:
        """Mean over a batch of weight · ‖x₀ − x̂₀‖², a tenth of the conditions left out."""
        import torch

        times = torch.randint(self.steps, (len(x),), generator=generator)
        noise = torch.randn(x.shape, generator=generator)
        kept = torch.from_numpy(self.kept()).float()[times][:, None]
        shown = (torch.rand((len(x), 1), generator=generator) >= _DROPPED).float()
        noisy = kept.sqrt() * x + (1 - kept).sqrt() * noise
        seen = self.clean(parameters, noisy, code * shown, times)
        return (weight[:, None] * (x - seen).square()).mean()


def forward(parameters: Parameters, name: str, inputs: Tensor) -> Tensor:
    """A multilayer perceptron with tanh between its layers."""
    import torch

    index, values = 0, inputs
    while f"{name}/{index}/weight" in parameters:
        if index:
            values = values.tanh()
        weight, bias = (parameters[f"{name}/{index}/{part}"] for part in ("weight", "bias"))
        values = torch.nn.functional.linear(values, weight, bias)
        index += 1
    return values


def log_probability(parameters: Parameters, states: Tensor, z: Tensor) -> Tensor:
    """Of pre-tanh codes z (K, 16) under the actor's Gaussian."""
    import torch

    mean, log_std = forward(parameters, "actor", states), parameters["actor/log_std"]
    terms = ((z - mean) / log_std.exp()).square() / 2 + log_std + 0.5 * np.log(2 * torch.pi)
    total: Tensor = -terms.sum(dim=1)
    return total
