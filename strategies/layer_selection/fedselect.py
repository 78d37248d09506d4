"""FedSelect: what changes most on a client becomes its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from annotated_types import Ge, Le
from numpy.typing import NDArray

from strategies.rng import Rng
from strategies.types import (
    FACTORS,
    Array,
    ClientId,
    GroupName,
    GroupSpec,
    Observation,
    ParamKey,
    RoundView,
    Selection,
    State,
    Statistic,
)


@dataclass(frozen=True, slots=True)
class FedSelect:
    """All is trained everywhere; each client's own part grows and is neither sent nor averaged.

    After every ``every``-th round a client takes part in, the ``share`` of its shared linear groups
    that moved most since the last time becomes personal, until ``limit`` of them are.  The head
    stays shared, since all clients answer for the same labels.  Goes with client method
    ``local-alt``; the client keeps its values, the server the masks.
    Source: FedSelect, arXiv 2404.02478, Alg. 1 and 2 (GradSelect); departs: whole groups instead of
    single weights, whose product LoRA would not survive, and squared moves summed over rounds
    instead of the distance from the last selection.
    """

    share: Annotated[float, Ge(0), Le(1)] = 0.25
    limit: Annotated[float, Ge(0), Le(1)] = 0.8
    every: Annotated[int, Ge(1)] = 3

    @property
    def reports(self) -> tuple[Statistic, ...]:
        return ()  # the drift it needs is part of every update

    def select(self, view: RoundView, rng: Rng) -> Selection:
        names = tuple(group.name for group in view.groups if group.kind in ("linear", "head"))
        return {client.client_id: names for client in view.clients}

    def kept(self, view: RoundView) -> Mapping[ClientId, Mapping[GroupName, tuple[str, ...]]]:
        groups = _linear(view)
        return {
            client.client_id: {
                group.name: (*FACTORS, *group.parts)
                for group, own in zip(
                    groups, _mask(view.state, client.client_id, groups), strict=True
                )
                if own
            }
            for client in view.clients
        }

    def observe(self, view: RoundView, seen: Sequence[Observation], rng: Rng) -> State:
        state, groups = dict(view.state), _linear(view)
        for observation in seen:
            if observation.answered:
                self._grow(state, groups, observation)
        return state

    def _grow(self, state: dict[str, Array], groups: list[GroupSpec], seen: Observation) -> None:
        client = seen.client_id
        drift = [float(seen.evidence.get(ParamKey(g.name, "drift"), 0.0)) for g in groups]
        moved = state.get(f"{client}/moved", np.zeros(len(groups))) + np.array(drift)
        rounds = int(state.get(f"{client}/rounds", np.array(0))) + 1
        if rounds % self.every == 0:
            state[f"{client}/mask"] = self._grown(_mask(state, client, groups), moved)
            moved = np.zeros(len(groups))
        state[f"{client}/moved"], state[f"{client}/rounds"] = moved, np.array(rounds)

    def _grown(self, mask: NDArray[np.int8], moved: NDArray[np.float64]) -> NDArray[np.int8]:
        shared = np.flatnonzero(mask == 0)
        room = int(self.limit * len(mask)) - int(mask.sum())
        count = min(int(np.ceil(self.share * len(shared))), room)
        grown = mask.copy()
        if count > 0:
            order = shared[np.argsort(-moved[shared], kind="stable")]
            grown[order[:count]] = 1
        return grown


def _linear(view: RoundView) -> list[GroupSpec]:
    return [group for group in view.groups if group.kind == "linear"]


def _mask(state: State, client: ClientId, groups: list[GroupSpec]) -> NDArray[np.int8]:
    return np.asarray(
        state.get(f"{client}/mask", np.zeros(len(groups), dtype=np.int8)), dtype=np.int8
    )
