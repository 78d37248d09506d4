"""What AirLLM does with its networks: choose for clients, book what came of it, learn.

Everything that is learnt lives in a flat ``State`` of NumPy arrays between calls, so that it is
checkpointed with the run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np

from strategies.rank.airllm.networks import (
    CODE,
    Diffusion,
    Parameters,
    Sizes,
    forward,
    initial_parameters,
    log_probability,
)
from strategies.rng import Rng
from strategies.types import Array, State

if TYPE_CHECKING:
    import torch
    from torch import Tensor

EPISODE: Final = 15  # client-rounds
_DISCOUNT, _SMOOTHING, _CLIP = 0.95, 0.95, 0.2
_ENTROPY, _VALUE = 0.01, 0.5
_PPO_EPOCHS, _DDIM_UPDATES = 4, 4
_REPLAY, _BATCH = 10_000, 128
_MEANING_PAIRS, _MEANING_UPDATES = 4096, 400


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """What the policy did for K clients: states (K, s), codes before tanh (K, 16), x (K, n)."""

    states: Array
    z: Array
    log_probability: Array
    value: Array
    x: Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Controller:
    """The two-level policy: a PPO actor's code, and a conditional DDIM that makes ranks of it."""

    sizes: Sizes
    diffusion: Diffusion
    policy_learning_rate: float
    diffusion_learning_rate: float

    def started(self, rng: Rng) -> State:
        """Networks as they are drawn, but that codes have a meaning.

        The DDIM is taught that a code's first coordinate is the overall level and the others its
        shape, so that the actor has something to steer by from its first episode on.
        """
        import torch

        nets = {f"net/{name}": v for name, v in initial_parameters(self.sizes, rng).items()}
        state = {**_empty(self.sizes), **nets}
        shape = 0.2 * rng.normal(size=(CODE - 1, self.sizes.action)) / np.sqrt(CODE - 1)
        z = 0.9 * rng.normal(size=(_MEANING_PAIRS, CODE))
        noise = 0.05 * rng.normal(size=(_MEANING_PAIRS, self.sizes.action))
        pairs = {
            "z": z.astype(np.float32),
            "x": np.clip(np.tanh(z[:, :1]) + np.tanh(z[:, 1:]) @ shape + noise, -1, 1).astype("f4"),
            "reward": np.zeros(_MEANING_PAIRS, np.float32),
        }
        learner = Learner.of(state, {"denoiser": self.diffusion_learning_rate})
        generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
        with one_thread():
            self._denoise(learner, pairs, generator, _MEANING_UPDATES)
        return {**state, **learner.arrays()}

    def choose(self, state: State, states: Array, noise: Array) -> Choices:
        """Codes and rank vectors for ``states`` (K, s), given normal ``noise`` (K, 16 + n)."""
        import torch

        with one_thread(), torch.no_grad():
            parameters = {
                name.removeprefix("net/"): torch.from_numpy(np.asarray(value))
                for name, value in state.items()
                if name.startswith("net/")
            }
            seen = torch.from_numpy(states.astype(np.float32))
            drawn = torch.from_numpy(noise.astype(np.float32))
            mean = forward(parameters, "actor", seen)
            z = mean + parameters["actor/log_std"].exp() * drawn[:, :CODE]
            x = self.diffusion.sample(parameters, z.tanh(), drawn[:, CODE:])
            return Choices(
                states=states.astype(np.float32),
                z=z.numpy(),
                log_probability=log_probability(parameters, seen, z).numpy(),
                value=forward(parameters, "critic", seen)[:, 0].numpy(),
                x=x.numpy(),
            )

    def booked(self, state: State, choices: Choices, rewards: Array) -> dict[str, Array]:
        """Transitions added to the pending episode and to the replay, whose oldest go."""
        booked = dict(state)
        new = {
            "states": choices.states,
            "z": choices.z,
            "log_probability": choices.log_probability,
            "value": choices.value,
            "x": choices.x,
            "reward": rewards.astype(np.float32),
        }
        for name, rows in new.items():
            booked[f"pending/{name}"] = np.concatenate([state[f"pending/{name}"], rows])
            if name in ("z", "x", "reward"):
                whole = np.concatenate([state[f"replay/{name}"], rows])
                booked[f"replay/{name}"] = whole[-_REPLAY:]
        return booked

    def learnt(self, state: State, seed: int) -> dict[str, Array]:
        """After PPO on the pending episode, then the DDIM on the replay."""
        import torch

        rates = dict.fromkeys(("actor", "critic"), self.policy_learning_rate)
        learner = Learner.of(state, rates | {"denoiser": self.diffusion_learning_rate})
        with one_thread():
            _ppo(learner, state)
            replay = {name: state[f"replay/{name}"] for name in ("z", "x", "reward")}
            self._denoise(learner, replay, torch.Generator().manual_seed(seed), _DDIM_UPDATES)
        kept = {n: v for n, v in state.items() if not n.startswith(("net/", "adam/", "pending/"))}
        empty = {n: v[:0] for n, v in state.items() if n.startswith("pending/")}
        updates = np.array(int(state["updates"]) + 1)
        return {**kept, **empty, **learner.arrays(), "updates": updates}

    def _denoise(
        self, learner: Learner, replay: State, generator: torch.Generator, updates: int
    ) -> None:
        """Denoising steps on the replay, each pair weighted by clip(1 + reward/10, 0.1, 10)."""
        import torch

        reward = np.asarray(replay["reward"], dtype=np.float64)
        standard = (reward - reward.mean()) / (reward.std() + 1e-8)
        weight = torch.from_numpy(np.clip(1 + 0.1 * standard, 0.1, 10)).float()
        x, code = torch.from_numpy(replay["x"]), torch.from_numpy(replay["z"]).tanh()
        for _ in range(updates):
            rows = torch.randint(len(x), (min(_BATCH, len(x)),), generator=generator)
            loss = self.diffusion.loss(
                learner.parameters, x[rows], code[rows], weight[rows], generator
            )
            learner.step(loss, "denoiser")


def _empty(sizes: Sizes) -> dict[str, Array]:
    widths = {"states": (sizes.state,), "z": (CODE,), "x": (sizes.action,)}
    names = ("states", "z", "log_probability", "value", "x", "reward")
    pending = {f"pending/{n}": np.zeros((0, *widths.get(n, ())), np.float32) for n in names}
    replay = {
        f"replay/{n}": np.zeros((0, *widths.get(n, ())), np.float32) for n in ("z", "x", "reward")
    }
    return {**pending, **replay, "updates": np.array(0)}


def _ppo(learner: Learner, state: State) -> None:
    """Four passes over the pending episode."""
    import torch

    advantage, returns = advantages(
        np.asarray(state["pending/reward"], dtype=np.float64),
        np.asarray(state["pending/value"], dtype=np.float64),
        _DISCOUNT,
        _SMOOTHING,
    )
    spread = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    seen, z = (torch.from_numpy(state[f"pending/{name}"]) for name in ("states", "z"))
    before = torch.from_numpy(state["pending/log_probability"])
    gain, target = (torch.from_numpy(a).float() for a in (spread, returns))
    for _ in range(_PPO_EPOCHS):
        ratio = (log_probability(learner.parameters, seen, z) - before).exp()
        miss = (forward(learner.parameters, "critic", seen)[:, 0] - target).square().mean()
        entropy = learner.parameters["actor/log_std"].sum()
        loss = _VALUE * miss - clipped_objective(ratio, gain, _CLIP) - _ENTROPY * entropy
        learner.step(loss, "actor", "critic")


def advantages(
    rewards: Array, values: Array, discount: float, smoothing: float
) -> tuple[Array, Array]:
    """Generalised advantage estimates of one episode (T,), and the returns they imply.

    Source: Schulman et al. 2016, arXiv 1506.02438, eq. 16; the episode ends after its last step.
    """
    found, running = np.zeros(len(rewards)), 0.0
    for step in range(len(rewards) - 1, -1, -1):
        following = values[step + 1] if step + 1 < len(rewards) else 0.0
        error = rewards[step] + discount * following - values[step]
        running = error + discount * smoothing * running
        found[step] = running
    return found, found + values


def clipped_objective(ratio: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """PPO's surrogate, arXiv 1707.06347, eq. 7; to be maximised."""
    import torch

    return torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage).mean()


@dataclass(slots=True)
class Learner:
    """Parameters and Adam moments of the three networks while they are updated."""

    parameters: Parameters
    rates: Mapping[str, float]
    optimizers: dict[str, torch.optim.Adam] = field(default_factory=dict)

    @classmethod
    def of(cls, state: State, rates: Mapping[str, float]) -> Learner:
        """Take up learning where ``state`` left it; ``rates`` by the first part of a name."""
        import torch

        values = {
            name.removeprefix("net/"): torch.tensor(value)
            for name, value in state.items()
            if name.startswith("net/")
        }
        learner = cls(values, rates)
        for network, rate in rates.items():
            mine = {n: v.requires_grad_() for n, v in values.items() if n.startswith(network)}
            optimizer = torch.optim.Adam(list(mine.values()), lr=rate)
            for name, parameter in mine.items():
                if f"adam/{name}/m" in state:
                    optimizer.state[parameter] = {
                        "step": torch.tensor(float(state[f"adam/{name}/step"])),
                        "exp_avg": torch.tensor(state[f"adam/{name}/m"]),
                        "exp_avg_sq": torch.tensor(state[f"adam/{name}/v"]),
                    }
            learner.optimizers[network] = optimizer
        return learner

    def step(self, loss: Tensor, *networks: str) -> None:
        """One Adam step of the named networks down the gradient of ``loss``."""
        for network in networks:
            self.optimizers[network].zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch
        for network in networks:
            self.optimizers[network].step()

    def arrays(self) -> dict[str, Array]:
        """Everything as arrays, to be remembered."""
        arrays = dict[str, Array]()
        for name, value in self.parameters.items():
            arrays[f"net/{name}"] = value.detach().numpy().copy()
        for network, optimizer in self.optimizers.items():
            for name, parameter in self.parameters.items():
                if name.startswith(network) and parameter in optimizer.state:
                    kept = optimizer.state[parameter]
                    arrays[f"adam/{name}/m"] = kept["exp_avg"].numpy().copy()
                    arrays[f"adam/{name}/v"] = kept["exp_avg_sq"].numpy().copy()
                    arrays[f"adam/{name}/step"] = np.array(float(kept["step"]))
        return arrays


@contextmanager
def one_thread() -> Iterator[None]:
    """The same bits on every machine, and no core taken from the clients."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
