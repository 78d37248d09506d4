"""Small, real nouns for tests of the server side."""

from __future__ import annotations

from typing import Any

import numpy as np

from orchestrator.config import RunConfig, parse_config
from orchestrator.federation import Federation
from orchestrator.plans import Order
from strategies.types import (
    HEAD,
    ClientId,
    ClientProfile,
    GroupName,
    GroupSpec,
    ModelDescription,
    ParamKey,
    TaskInfo,
    Update,
)

QUERY, VALUE = GroupName("block.0.query"), GroupName("block.1.value")


def a_config(**changes: Any) -> RunConfig:
    tree: dict[str, Any] = {
        "name": "test",
        "model": {"task": "image-classification", "name": "from-config", "architecture": "vit"},
        "data": {"source": "digits"},
        "stream": {"kind": "class-incremental", "classes_per_task": 2},
        "federation": {"clients": 3, "transport": "in-process"},
        "learning": {"rounds_per_task": 2, "local_steps": 2},
        "strategy": {"rank": {"name": "fixed", "rank": 2}},
    }
    for key, value in changes.items():
        table = tree
        *parents, leaf = key.split("__")
        for parent in parents:
            table = table.setdefault(parent, {})
        table[leaf] = value
    return parse_config(tree)


def a_model() -> ModelDescription:
    linear = [
        GroupSpec(
            name=name, kind="linear", role=name.split(".")[-1], block=block,
            parts={"weight": (5, 7), "bias": (5,)}, linear=(5, 7),
        )
        for block, name in enumerate((QUERY, VALUE))
    ]  # fmt: skip
    head = GroupSpec(
        name=HEAD, kind="head", role="head", block=None, parts={"weight": (4, 7), "bias": (4,)}
    )
    return ModelDescription(
        base_digest="base", num_parameters=112, num_blocks=2, groups=(*linear, head)
    )


def a_federation(num_train: tuple[tuple[int, ...], ...] = ((4, 4), (4, 4), (4, 4))) -> Federation:
    tasks = (TaskInfo(name="a", labels=("0", "1")), TaskInfo(name="b", labels=("2", "3")))
    clients = tuple(
        ClientProfile(
            client_id=ClientId(f"client-{index}"), kind="cpu", device="test", memory_bytes=1,
            tasks=tasks, num_train=counts, num_test=(2, 2), model=a_model(),
        )
        for index, counts in enumerate(num_train)
    )  # fmt: skip
    return Federation(clients=clients, tasks=tasks, model=a_model())


def an_update(order: Order, federation: Federation, fill: float = 0.01) -> Update:
    """An honest answer to ``order`` in which every trained value moved by ``fill``."""
    from orchestrator.shapes import planned_shapes

    groups, assignment = federation.groups(), order.assignment
    delta = {
        ParamKey(name, part): np.full(shape, fill, dtype=np.float32)
        for name, plan in assignment.groups.items()
        for part, shape in planned_shapes(plan, groups[name]).items()
    }
    return Update(
        assignment_id=assignment.assignment_id,
        client_id=assignment.client_id,
        plan_hash=assignment.plan_hash(),
        delta=delta,
        num_examples={name: np.array(4) for name in assignment.groups},
        metrics={"num_examples": 4.0, "loss": 1.0},
        seconds={"compute": 0.1},
    )
