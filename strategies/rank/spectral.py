"""Ranks from the spectrum of what was learnt so far, within each client's own means."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from annotated_types import Ge, Gt, Le
from numpy.typing import NDArray

from strategies.cost import CostModel, cautious, lora_flops
from strategies.fitting import least_bytes, values_bytes
from strategies.rank.limits import largest_ranks, plans_of
from strategies.rng import Rng
from strategies.types import (
    ClientProfile,
    GroupName,
    GroupSpec,
    LowRank,
    Ranks,
    RoundView,
    Selection,
)


@dataclass(frozen=True, slots=True)
class Spectral:
    """Give every client the components that lose the least energy per byte and per second.

    The server knows the singular values σ of every group's merged update.  A client without
    component i of a group works without σᵢ² of the update's energy; having it costs bytes both
    ways, memory and time.  Components are added greedily by energy over the largest share of any
    budget they use, until ``energy`` of the whole is covered or nothing more fits the client's
    deadline, memory or ``bytes_per_round``.  Within a group energies fall and costs are alike, so a
    client's components are always the first ones and its slice is a prefix; for one budget the
    greedy choice is the best one up to the last component (fractional knapsack).

    Directions nobody has trained yet have no energy.  Each group is therefore credited with
    ``exploration`` times the mean energy of a group, spread over components as 1/(i+1)², so that
    new ranks are tried and the first round, where all is zero, spreads its budget evenly.
    Source: ours.
    """

    same_for_all: ClassVar[bool] = False
    needs_spectrum: ClassVar[bool] = True
    rank: Annotated[int, Ge(1)] = 16
    energy: Annotated[float, Gt(0), Le(1)] = 0.99
    exploration: Annotated[float, Gt(0)] = 0.05
    bytes_per_round: Annotated[float, Gt(0)] | None = None
    """Bytes down and up together, per client."""
    deadline_share: Annotated[float, Gt(0), Le(1)] = 0.9
    """Part of the deadline that is planned for."""
    memory_share: Annotated[float, Gt(0), Le(1)] = 0.5
    """Part of the device's memory that training may take, of clients that state no limit."""

    @property
    def max_rank(self) -> int:
        return self.rank

    def allocate(self, view: RoundView, selection: Selection, rng: Rng) -> Ranks:
        gains = self.gains(view)
        return {
            client.client_id: self._ranks(view, client, selection[client.client_id], gains)
            for client in view.clients
        }

    def gains(self, view: RoundView) -> dict[GroupName, NDArray[np.float64]]:
        """Energy of every component of every linear group, falling within a group."""
        largest = largest_ranks(view, self.rank)
        energies = {
            name: np.square(
                np.pad(np.asarray(view.spectra.get(name, ())), (0, self.rank))[:size],
                dtype=np.float64,
            )
            for name, size in largest.items()
        }
        mean = float(np.mean([e.sum() for e in energies.values()])) if energies else 0.0
        credit = self.exploration * mean if mean else 1.0
        return {
            name: energy + credit / np.square(np.arange(1, len(energy) + 1))
            for name, energy in energies.items()
        }

    def _ranks(
        self,
        view: RoundView,
        client: ClientProfile,
        chosen: Sequence[GroupName],
        gains: Mapping[GroupName, NDArray[np.float64]],
    ) -> dict[GroupName, int]:
        account = _Account.of(self, view, client, chosen)
        specs = {group.name: group for group in view.groups}
        ranks = {name: 0 for name in chosen if name in gains}
        wanted = self.energy * sum(float(gains[name].sum()) for name in ranks)
        queue = [(-gains[name][0] / account.price(specs[name]), name) for name in ranks]
        heapq.heapify(queue)
        covered = 0.0
        while queue and covered < wanted:
            _, name = heapq.heappop(queue)
            if not account.buy(specs[name]):
                continue  # nor could it later: the account only shrinks
            covered += float(gains[name][ranks[name]])
            ranks[name] += 1
            if ranks[name] < len(gains[name]):
                gain = gains[name][ranks[name]]
                heapq.heappush(queue, (-gain / account.price(specs[name]), name))
        return ranks


@dataclass(slots=True, kw_only=True)
class _Account:
    """What is left of a client's seconds, bytes and memory; infinite where nothing limits it."""

    client: ClientProfile
    costs: CostModel
    budgets: NDArray[np.float64]  # seconds, bytes, memory: as they were
    left: NDArray[np.float64]

    @classmethod
    def of(
        cls, policy: Spectral, view: RoundView, client: ClientProfile, chosen: Sequence[GroupName]
    ) -> _Account:
        """The budgets, less what the plan costs whatever the ranks."""
        client = cautious(client)
        costs = CostModel.of(view.groups, view.budget, client)
        deadline, limit = view.budget.deadline_seconds, policy.bytes_per_round
        budgets = np.array(
            [
                np.inf if deadline is None else policy.deadline_share * deadline,
                np.inf if limit is None else limit,
                client.memory_limit_bytes or policy.memory_share * client.memory_bytes,
            ]
        )
        # Compute grows mainly with how deep the backward pass must go: count on all the way.
        ones = plans_of(chosen, dict.fromkeys(largest_ranks(view, 1), 1))
        dense = {name: plan for name, plan in ones.items() if not isinstance(plan, LowRank)}
        carried = view.carried_bytes.get(client.client_id, 0.0)
        traffic = carried + costs.bytes_up(dense) + costs.bytes_down(dense)
        traffic += 2 * costs.message_bytes(ones)
        seconds = (
            client.exchange_seconds
            + costs.transfer_seconds(client, dense)
            + carried / client.downlink_bytes_per_second  # type: ignore[operator]  # not None: cautious
            + costs.message_bytes(ones) / client.uplink_bytes_per_second  # type: ignore[operator]
            + costs.message_bytes(ones) / client.downlink_bytes_per_second  # type: ignore[operator]
            + (costs.compute_seconds(client, ones) or 0.0)
        )
        limited = client.memory_limit_bytes is not None
        memory = least_bytes(costs, ones, client) if limited else costs.training_bytes(ones)
        fixed = np.array([seconds, traffic, memory])
        return cls(client=client, costs=costs, budgets=budgets, left=budgets - fixed)

    def price(self, spec: GroupSpec) -> float:
        """The largest share of a budget one more component takes; ties go by bytes."""
        need, shares = self._need(spec), np.zeros(3)
        limited = np.isfinite(self.budgets)
        shares[limited] = need[limited] / np.maximum(self.budgets[limited], 1e-9)
        return float(shares[:2].max()) or float(need[1])

    def buy(self, spec: GroupSpec) -> bool:
        """Pay for one more component of a group, if there is enough left of everything."""
        need = self._need(spec)
        if (need > self.left).any():
            return False
        self.left = self.left - need
        return True

    def _need(self, spec: GroupSpec) -> NDArray[np.float64]:
        one = {spec.name: LowRank(rank=1)}
        budget, client = self.costs.budget, self.client
        tokens = budget.batch_size * budget.steps * self.costs.tokens_per_example
        compute = 3 * tokens * lora_flops(spec, 1) / (client.flops_per_second or np.inf)
        return np.array(
            [
                self.costs.transfer_seconds(client, one) + compute,
                self.costs.bytes_up(one) + self.costs.bytes_down(one),
                values_bytes(self.costs, one)
                if client.memory_limit_bytes
                else self.costs.adapter_bytes(one),
            ]
        )
