"""A simulated channel, on which the policy learns before a federation's few rounds begin."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from strategies.rank.airllm.controller import EPISODE, Controller
from strategies.rank.airllm.decision import PENALTY, features, ranks_of, share_of_deadline
from strategies.rank.airllm.networks import CODE
from strategies.rank.limits import plans_of
from strategies.rng import Rng, rng_for, seed_for
from strategies.types import (
    ClientId,
    ClientProfile,
    GroupName,
    GroupSpec,
    ModelDescription,
    RoundBudget,
    RoundView,
    State,
)

# Bytes per second, from a poor radio link to a good line; FLOPs per second of small devices.
_RATES: Final = (4e3, 4e6)
_SPEEDS: Final = (2e9, 1e12)
_CLIENTS: Final = 4 * EPISODE  # an episode of so many cannot be all luck
_NO_MODEL: Final = ModelDescription(base_digest="", num_parameters=0, num_blocks=0, groups=())


@dataclass(frozen=True, slots=True, kw_only=True)
class Channel:
    """Clients on lines drawn by lot, and what their ranks are worth there."""

    rank: int
    cost_weight: float
    groups: tuple[GroupSpec, ...]
    budget: RoundBudget
    tokens_per_example: float

    def trained(self, controller: Controller, episodes: int, seed: int) -> State:
        """The policy after ``episodes`` of 60 client-rounds here."""
        rng = rng_for(seed, "airllm", "channel")
        state = controller.started(rng)
        for episode in range(episodes):
            clients = self.clients(rng)
            view = self.view(clients)
            states = np.stack([features(view, state, client, self.rank) for client in clients])
            noise = rng.standard_normal((len(clients), CODE + controller.sizes.action))
            choices = controller.choose(state, states, noise)
            rewards = [
                self.reward(view, client, ranks_of(view, x, self.rank))
                for client, x in zip(clients, choices.x, strict=True)
            ]
            booked = controller.booked(state, choices, np.array(rewards))
            state = controller.learnt(booked, seed_for(seed, "airllm", "channel", episode))
        return state

    def view(self, clients: tuple[ClientProfile, ...]) -> RoundView:
        """What a round with these clients would be planned from."""
        return RoundView(
            task_index=0, round_index=0, groups=self.groups, clients=clients, budget=self.budget
        )

    def clients(self, rng: Rng) -> tuple[ClientProfile, ...]:
        """Clients whose lines and devices are spread evenly in logarithm."""
        low, high = np.log(_RATES)
        return tuple(
            ClientProfile(
                client_id=ClientId(f"simulated-{index}"),
                kind="edge",
                device="simulated",
                memory_bytes=2**40,
                tasks=(),
                num_train=(),
                num_test=(),
                model=_NO_MODEL,
                tokens_per_example=self.tokens_per_example,
                flops_per_second=float(np.exp(rng.uniform(*np.log(_SPEEDS)))),
                uplink_bytes_per_second=float(np.exp(rng.uniform(low, high))),
                downlink_bytes_per_second=float(np.exp(rng.uniform(low, high))),
            )
            for index in range(_CLIENTS)
        )

    def reward(
        self, view: RoundView, client: ClientProfile, ranks: Mapping[GroupName, int]
    ) -> float:
        """−(share of a spectrum 1/(i+1)² left out) − cost, or the penalty."""
        head = [group.name for group in self.groups if group.kind == "head"]
        kappa = share_of_deadline(view, client, plans_of((*ranks, *head), ranks))
        if kappa > 1:
            return -(PENALTY + self.cost_weight) * min(kappa, 10.0)
        energy = 1 / np.square(np.arange(1, self.rank + 1))
        left_out = np.mean([energy[rank:].sum() / energy.sum() for rank in ranks.values()])
        return -float(left_out) - self.cost_weight * kappa
