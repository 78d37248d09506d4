"""AirLLM: ranks from the channel and what clients report, by a policy that learns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Final

import numpy as np
from annotated_types import Ge, Gt

from strategies.rank.airllm.channel import Channel
from strategies.rank.airllm.controller import EPISODE, Choices, Controller
from strategies.rank.airllm.decision import (
    NUM_FEATURES,
    PENALTY,
    deadline_of,
    features,
    fitted,
    ranks_of,
    share_of_deadline,
)
from strategies.rank.airllm.networks import CODE, Diffusion, Sizes
from strategies.rank.limits import largest_ranks, plans_of
from strategies.rng import Rng, rng_for, seed_for
from strategies.types import (
    Array,
    ClientProfile,
    Dense,
    GroupName,
    LowRank,
    Observation,
    Ranks,
    RoundView,
    Selection,
    State,
    Statistic,
)

# The last policy trained on the simulated channel: a pure function of its key, kept because it
# takes seconds and is asked for again until a round has been observed.
_TRAINED: Final[dict[str, State]] = {}


@dataclass(frozen=True, slots=True)
class AirLLM:
    """Per client: a PPO actor maps link and telemetry to a code, a conditional DDIM that to ranks.

    κ is the part of the deadline a choice takes by the cost model.  The reward of a client-round is
    −loss − ``cost_weight``·κ; a choice with κ > 1 is not sent but scaled down until it fits, and
    gets −10 κ.  After every 15 client-rounds the actor and critic are updated by PPO, then the DDIM
    by reward-weighted denoising.  Since a federation gives some hundred client-rounds where the
    paper has tens of thousands, both first learn on a simulated channel in which the loss is the
    share of a decaying spectrum that the ranks leave out.
    Source: AirLLM, arXiv 2507.11515; departs: one decision per client and round with B·A and not
    P·diag(e)·Q, infeasible choices are scaled down instead of wasting the round, the DDIM starts
    from pairs that give the code a meaning (its first coordinate is the overall level), telemetry
    is the client's last loss instead of token statistics.
    """

    same_for_all: ClassVar[bool] = False
    rank: Annotated[int, Ge(1)] = 16
    cost_weight: Annotated[float, Ge(0)] = 0.1
    pretrain_episodes: Annotated[int, Ge(0)] = 200
    diffusion_steps: Annotated[int, Ge(2)] = 1000
    sampling_steps: Annotated[int, Ge(2)] = 20
    policy_learning_rate: Annotated[float, Gt(0)] = 1e-3
    diffusion_learning_rate: Annotated[float, Gt(0)] = 2e-3

    @property
    def max_rank(self) -> int:
        return self.rank

    @property
    def reports(self) -> tuple[Statistic, ...]:
        return ()

    def allocate(self, view: RoundView, selection: Selection, rng: Rng) -> Ranks:
        choices = self._choices(view, self._started(view), view.clients)
        return {
            client.client_id: fitted(
                view, client, selection[client.client_id], ranks_of(view, x, self.rank)
            )
            for client, x in zip(view.clients, choices.x, strict=True)
        }

    def observe(self, view: RoundView, seen: Sequence[Observation], rng: Rng) -> State:
        """Book the round's transitions; after every 15 of them, learn."""
        state, by_id = self._started(view), {c.client_id: c for c in view.clients}
        if not seen:
            return state
        clients = [by_id[observation.client_id] for observation in seen]
        choices = self._choices(view, state, clients)
        rewards = [
            self._reward(view, client, ranks_of(view, x, self.rank), observation)
            for client, x, observation in zip(clients, choices.x, seen, strict=True)
        ]
        controller = self._controller(view)
        booked = controller.booked(state, choices, np.array(rewards))
        for observation in seen:
            booked |= _remembered(booked, view, observation)
        if len(booked["pending/reward"]) < EPISODE:
            return booked
        return controller.learnt(booked, seed_for(view.seed, "airllm", int(booked["updates"])))

    def _controller(self, view: RoundView) -> Controller:
        count = len(largest_ranks(view, self.rank))
        return Controller(
            sizes=Sizes(state=NUM_FEATURES + count, action=count),
            diffusion=Diffusion(
                steps=self.diffusion_steps, sampled=min(self.sampling_steps, self.diffusion_steps)
            ),
            policy_learning_rate=self.policy_learning_rate,
            diffusion_learning_rate=self.diffusion_learning_rate,
        )

    def _started(self, view: RoundView) -> State:
        """What was remembered or, the first time, what is learnt on the simulated channel."""
        if view.state:
            return view.state
        channel = Channel(
            rank=self.rank,
            cost_weight=self.cost_weight,
            groups=view.groups,
            budget=replace(view.budget, tasks=()),  # of clients that hold no examples
            tokens_per_example=float(np.mean([c.tokens_per_example for c in view.clients])),
        )
        key = repr((self, channel, view.seed))
        if key not in _TRAINED:
            _TRAINED.clear()
            _TRAINED[key] = channel.trained(
                self._controller(view), self.pretrain_episodes, view.seed
            )
        return _TRAINED[key]

    def _choices(self, view: RoundView, state: State, clients: Sequence[ClientProfile]) -> Choices:
        """The policy's raw choices: the same whenever they are worked out for view and state."""
        controller, path = self._controller(view), (view.task_index, view.round_index)
        streams = [rng_for(view.seed, "airllm", *path, client.client_id) for client in clients]
        return controller.choose(
            state,
            np.stack([features(view, state, client, self.rank) for client in clients]),
            np.stack([rng.standard_normal(CODE + controller.sizes.action) for rng in streams]),
        )

    def _reward(
        self,
        view: RoundView,
        client: ClientProfile,
        ranks: Mapping[GroupName, int],
        seen: Observation,
    ) -> float:
        dense = [name for name, plan in seen.groups.items() if isinstance(plan, Dense)]
        kappa = share_of_deadline(view, client, plans_of((*ranks, *dense), ranks))
        if kappa > 1:
            return -(PENALTY + self.cost_weight) * min(kappa, 10.0)
        if not seen.answered or seen.loss is None:
            return -PENALTY
        return -min(seen.loss, PENALTY) - self.cost_weight * kappa


def _remembered(state: State, view: RoundView, seen: Observation) -> dict[str, Array]:
    """A client's last loss, κ and ranks, for its next state."""
    before = state.get(f"client/{seen.client_id}/last", np.array([0.0, 0.0]))
    loss = before[0] if seen.loss is None else seen.loss
    plans = [seen.groups.get(group.name) for group in view.groups if group.linear]
    ranks = [plan.rank if isinstance(plan, LowRank) else 0 for plan in plans]
    return {
        f"client/{seen.client_id}/last": np.array([loss, seen.seconds / deadline_of(view)]),
        f"client/{seen.client_id}/ranks": np.array(ranks, dtype=np.float64),
    }
