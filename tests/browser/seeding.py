"""Runs for the pages to show: as the store would have them, in every status."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from orchestrator.config import RunConfig
from orchestrator.home import Home
from orchestrator.store.base import RoundRecord, RunStatus
from tests.conftest import tiny_config
from tests.orchestrator.recorded_run import CLIENTS, ROUNDS_PER_TASK, TASKS, recorded_run

OWNER = "somebody"


@dataclass(frozen=True, slots=True, kw_only=True)
class Seed:
    """A run to be put on record up to its step ``until``."""

    name: str
    kept: float
    method: str
    tags: tuple[str, ...] = ()
    status: RunStatus = RunStatus.COMPLETED
    reason: str = "all steps done"
    until: int | None = None


SEEDS = (
    Seed(name="intents-finetune", kept=0.62, method="finetune", tags=("baseline",)),
    Seed(name="intents-er", kept=0.93, method="er", tags=("paper", "replay")),
    Seed(name="intents-derpp", kept=0.95, method="derpp", tags=("paper", "replay")),
    Seed(
        name="intents-broken",
        kept=0.8,
        method="er",
        status=RunStatus.FAILED,
        reason="step 7 had 1 usable reply, expected at least 2, after 3 attempts",
        until=7,
    ),
    Seed(
        name="intents-paused",
        kept=0.9,
        method="er",
        status=RunStatus.INTERRUPTED,
        reason="asked to stop by Ctrl-C",
        until=12,
    ),
    Seed(name="intents-new", kept=0.9, method="er", status=RunStatus.CREATED, reason="", until=0),
)


def seeded(home: Home) -> dict[str, str]:
    """Put all ``SEEDS`` on record; ids by name."""
    return {seed.name: put(home, seed) for seed in SEEDS}


def put(home: Home, seed: Seed) -> str:
    """Put a run on record, step by step as it would have been committed; its id."""
    config = _config(seed)
    store = home.store()
    run = store.create_run(
        name=seed.name,
        config=config.model_dump(mode="json"),
        config_digest=f"{abs(int(1e6 * seed.kept)):012x}",
        code_version="0.1.0",
        environment={"python": "3.11.2", "flwr": "1.41.0", "cores": "2"},
    )
    if seed.tags:
        store.tag(run.run_id, add=seed.tags, remove=())
    if seed.status is RunStatus.CREATED:
        return run.run_id
    store.transition(
        run.run_id, RunStatus.RUNNING, expected=[run.status], reason="started", owner=OWNER
    )
    store.describe(run.run_id, task_names=TASKS)
    rounds = list(_rounds(seed))
    for record in rounds:
        store.commit_round(run.run_id, record, OWNER)
    store.renew_lease(run.run_id, OWNER, timedelta(seconds=60), progress=_progress(seed, rounds))
    store.transition(
        run.run_id,
        seed.status,
        expected=[RunStatus.RUNNING],
        reason=seed.reason,
        owner=OWNER,
    )
    return run.run_id


def _config(seed: Seed) -> RunConfig:
    return tiny_config(
        name=seed.name,
        seed=3,
        federation__clients=len(CLIENTS),
        learning__rounds_per_task=ROUNDS_PER_TASK,
        learning__methods=[{"name": seed.method}],
    )


def _rounds(seed: Seed) -> Iterator[RoundRecord]:
    _, rounds, _ = recorded_run(name=seed.name, kept=seed.kept)
    for told in rounds[: seed.until]:
        replies = tuple(
            replace(reply, assignment_id=f"{seed.name}/{reply.assignment_id}")
            for reply in told.replies
        )
        record = replace(told, replies=replies)
        last = record.round_index == ROUNDS_PER_TASK - 1 and record.task_index > 0
        replays = record.kind == "train" and last and seed.method != "finetune"
        yield replace(record, kind="replay") if replays else record


def _progress(seed: Seed, rounds: list[RoundRecord]) -> dict[str, Any]:
    steps = 1 + len(TASKS) * (ROUNDS_PER_TASK + 1)
    replies = [reply for record in rounds for reply in record.replies]
    return {
        "acc": 0.95 * seed.kept**2,
        "forgetting": 1 - seed.kept,
        "steps": steps,
        "steps_done": len(rounds),
        "rounds": sum(record.kind == "train" for record in rounds),
        "bytes_up": sum(reply.bytes_up for reply in replies),
        "bytes_down": sum(reply.bytes_down for reply in replies),
    }
