"""What the clients said of themselves, once they agree, and the model they start from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from orchestrator.config import RunConfig
from strategies.errors import TransportError
from strategies.lora import drawn_factors, keys_of
from strategies.types import (
    Array,
    ClientProfile,
    GlobalState,
    GroupName,
    GroupSpec,
    ModelDescription,
    ParamKey,
    TaskInfo,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Federation:
    """The clients that are there, and the tasks and the base model they share.

    ``absent`` were there before and have left.
    """

    clients: tuple[ClientProfile, ...]  # sorted by id
    tasks: tuple[TaskInfo, ...]
    model: ModelDescription
    absent: tuple[ClientProfile, ...] = ()  # sorted by id

    def groups(self) -> Mapping[GroupName, GroupSpec]:
        """The model's groups by name."""
        return {group.name: group for group in self.model.groups}


def agree(profiles: Sequence[ClientProfile]) -> Federation:
    """One federation out of all profiles.

    Raises: TransportError naming the first client whose tasks or base model differ.
    """
    if not profiles:
        raise TransportError("no client answered the request for its profile")
    ordered = sorted(profiles, key=lambda profile: profile.client_id)
    first = ordered[0]
    for other in ordered[1:]:
        if fault := disagreement(other, first):
            raise TransportError(fault)
    return Federation(clients=tuple(ordered), tasks=first.tasks, model=first.model)


def disagreement(one: ClientProfile, other: ClientProfile) -> str:
    """Why these two cannot take part in the same run; empty if they can."""
    if one.model.base_digest != other.model.base_digest:
        return (
            f"{one.client_id} has base model {one.model.base_digest[:12]}, "
            f"{other.client_id} has {other.model.base_digest[:12]}; give both the same checkpoint"
        )
    if one.model != other.model:
        return (
            f"{one.client_id} and {other.client_id} describe base model "
            f"{one.model.base_digest[:12]} differently; install the same version on both"
        )
    if one.tasks != other.tasks:
        return (
            f"{one.client_id} and {other.client_id} disagree on the tasks or their labels; "
            "declare data.labels and stream.tasks in the run file"
        )
    return ""


def initial_state(config: RunConfig, federation: Federation) -> GlobalState:
    """The untrained model: A drawn per group from the run's seed, B zero, nothing dense moved."""
    rank, tensors = config.rank_allocator().max_rank, dict[ParamKey, Array]()
    for group in federation.model.groups:
        if rank and group.kind == "linear" and group.linear:
            factors = drawn_factors(config.seed, group, min(rank, *group.linear))
            tensors |= zip(keys_of(group.name), factors, strict=True)
    return GlobalState(step_index=0, tensors=tensors)
