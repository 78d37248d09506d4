"""A small encoder as strategies see one: embeddings, blocks of six linear groups, a head."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from strategies.types import (
    HEAD,
    ClientId,
    ClientProfile,
    GroupName,
    GroupSpec,
    ModelDescription,
    RoundView,
    TaskInfo,
)

WIDTH, INNER = 8, 16
ROLES = {
    "attention.self.query": (WIDTH, WIDTH),
    "attention.self.key": (WIDTH, WIDTH),
    "attention.self.value": (WIDTH, WIDTH),
    "attention.output.dense": (WIDTH, WIDTH),
    "intermediate.dense": (INNER, WIDTH),
    "output.dense": (WIDTH, INNER),
}


def linear(name: str, block: int | None, shape: tuple[int, int]) -> GroupSpec:
    return GroupSpec(
        name=GroupName(name), kind="linear", role=name.rpartition(".")[2], block=block,
        parts={"weight": shape, "bias": shape[:1]}, linear=shape,
    )  # fmt: skip


def groups_of(num_blocks: int = 3) -> tuple[GroupSpec, ...]:
    embedding = GroupSpec(
        name=GroupName("embeddings.word_embeddings"), kind="embedding", role="word_embeddings",
        block=None, parts={"weight": (50, WIDTH)},
    )  # fmt: skip
    blocks = [
        linear(f"encoder.layer.{block}.{role}", block, shape)
        for block in range(num_blocks)
        for role, shape in ROLES.items()
    ]
    head = GroupSpec(
        name=HEAD, kind="head", role="classifier", block=None, parts={"weight": (5, WIDTH)}
    )
    return (embedding, *blocks, head)


def a_profile(index: int = 0, **changes: Any) -> ClientProfile:
    groups = groups_of()
    profile = ClientProfile(
        client_id=ClientId(f"client-{index}"), kind="cpu", device="test", memory_bytes=2**30,
        tasks=(TaskInfo(name="a", labels=("0",)),), num_train=(10 + index,), num_test=(2,),
        tokens_per_example=12.0,
        model=ModelDescription(
            base_digest="base", num_parameters=1000, num_blocks=3, groups=groups
        ),
    )  # fmt: skip
    return replace(profile, **changes)


def a_view(num_clients: int = 3, num_blocks: int = 3, **changes: Any) -> RoundView:
    view = RoundView(
        task_index=0,
        round_index=0,
        groups=groups_of(num_blocks),
        clients=tuple(a_profile(index) for index in range(num_clients)),
    )
    return replace(view, **changes)


def everything(view: RoundView) -> dict[ClientId, tuple[GroupName, ...]]:
    """The selection of all linear groups and the head, for everybody."""
    names = tuple(group.name for group in view.groups if group.kind in ("linear", "head"))
    return {client.client_id: names for client in view.clients}
