"""A run as the store would give it back: five tasks, ten clients, some of them failing."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import numpy as np

from orchestrator.store.base import (
    EventRecord,
    ReplyRecord,
    RoundRecord,
    RunRecord,
    RunStatus,
    ScoreRecord,
)
from strategies.rng import rng_for
from strategies.types import ClientKind, client_ids

START = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
TASKS = ("banking", "travel", "home", "work", "small_talk")
CLIENTS = client_ids(10)
KINDS: tuple[ClientKind, ...] = ("edge", "cpu", "gpu")
ROUNDS_PER_TASK = 3
MODULES = ("attention.query", "attention.key", "attention.value", "output.dense")
REFUSED = {  # (step, client): reason
    (3, CLIENTS[2]): ("deadline", "no answer within 60 s"),
    (4, CLIENTS[2]): ("deadline", "no answer within 60 s"),
    (10, CLIENTS[7]): ("not-finite", "head.weight holds 28 values that are not finite"),
}


def recorded_run(
    *, name: str = "intents", kept: float = 0.94
) -> tuple[RunRecord, list[RoundRecord], list[EventRecord]]:
    """``kept`` is the share of its accuracy that a task keeps each time another one is learnt."""
    rounds = list(_rounds(name, kept))
    run = RunRecord(
        run_id=f"20260304-050607-{name[:4]}",
        name=name,
        status=RunStatus.COMPLETED,
        reason="all steps done",
        config={
            "name": name,
            "seed": 3,
            "learning": {"methods": [{"name": "er" if kept > 0.9 else "finetune"}]},
            "federation": {"clients": 10, "cohort": None},
            "publish": {"require": {"max_drop": 0.3}},
        },
        config_digest="0123456789ab",
        code_version="0.1.0",
        environment={"python": "3.11.2", "flwr": "1.41.0", "cores": "2"},
        task_names=TASKS,
        created_at=START,
        started_at=START + timedelta(seconds=2),
        ended_at=START + timedelta(seconds=95),
        progress={"acc": 0.5, "bwt": float("nan"), "rounds": 15, "bytes_up": 7},
        lease_owner=None,
        lease_expires_at=None,
        checkpoint="c" * 64,
        adapter_path="/data/runs/intents/adapters/task-4",
    )
    return run, rounds, _events(rounds)


def _rounds(name: str, kept: float) -> Iterator[RoundRecord]:
    yield _round(name, 0, -1, 0, kept)
    for task in range(len(TASKS)):
        first = 1 + task * (ROUNDS_PER_TASK + 1)
        for index in range(ROUNDS_PER_TASK):
            yield _round(name, first + index, task, index, kept, train=True)
        yield _round(name, first + ROUNDS_PER_TASK, task, 0, kept)


def _round(
    name: str, step: int, task: int, index: int, kept: float, *, train: bool = False
) -> RoundRecord:
    replies = tuple(_reply(step, task, index, client, train=train) for client in CLIENTS)
    ok = [reply for reply in replies if reply.status == "ok" and reply.num_examples]
    loss = (
        np.average([r.metrics["loss"] for r in ok], weights=[r.num_examples for r in ok])
        if ok
        else 0
    )
    return RoundRecord(
        step_index=step,
        task_index=task,
        round_index=index,
        kind="train" if train else "evaluate",
        committed_at=START + timedelta(seconds=5 + 4 * step),
        checkpoint=f"{step:064x}",
        seconds={"exchange": 3.5 if train else 1.2, "aggregate": 0.3 * train, "checkpoint": 0.05},
        metrics={"loss": float(loss)} if train else {},
        truncation={"encoder.layer.0.attention.query": 0.01 + 0.002 * step} if train else {},
        drift=_drift(task) if train else {},
        replies=replies,
        scores=() if train else tuple(_scores(name, step, task, kept)),
    )


def _reply(step: int, task: int, index: int, client: str, *, train: bool) -> ReplyRecord:
    number, failed = CLIENTS.index(client), REFUSED.get((step, client))
    seconds = {
        "load": 0.2,
        "train": 0.2 * (number + 4) * train,
        "evaluate": 0.1 + 0.5 * (not train),
    }
    trained = train and not failed
    return ReplyRecord(
        assignment_id=f"run/{step:05d}/{client}",
        client_id=client,
        status="failed" if failed else "ok",
        failure_reason=failed[0] if failed else None,
        failure_detail=failed[1] if failed else None,
        num_examples=40 + 8 * number if trained else 0,
        ranks=_ranks(number) if train else {},
        bytes_down=120_000 + 9_000 * number,
        bytes_up=(100_000 + 9_000 * number if train else 1_300) if not failed else 0,
        seconds={"total": 60.0}
        if failed
        else seconds | {"compute": sum(seconds.values()), "total": 3.4},
        metrics={
            "loss": 1.7 / (index + 1) + 0.02 * number,
            "replayed": 30.0 * (task > 0),
            "new": 90.0 - 30.0 * (task > 0),
        }
        if trained
        else {},
        peak_memory_bytes=700_000_000 + 1_000_000 * number,
        client_kind=KINDS[number % 3],
    )


def _ranks(number: int) -> dict[str, int]:
    """The more a client can carry, the more blocks it trains, and at the higher rank."""
    rank, blocks = (2, 4, 8)[number % 3], (1, 2, 3)[number % 3]
    groups = [
        f"encoder.layer.{block}.{module}" for block in range(3)[-blocks:] for module in MODULES
    ]
    return dict.fromkeys(groups, rank) | {"head": 0}


def _drift(task: int) -> dict[str, float]:
    """Later blocks move more, and the head most; all of them most in task 2."""
    surge = 1.5 if task == 2 else 1.0
    return {g: 2e-4 * surge * (1 + int(g.split(".")[2])) for g in _ranks(2) if g != "head"} | {
        "head": 1.1e-3 * surge
    }


def _scores(name: str, step: int, after: int, kept: float) -> Iterator[ScoreRecord]:
    for client in (each for each in CLIENTS if (step, each) not in REFUSED):
        for task in range(len(TASKS)):
            examples = 12 + (7 * CLIENTS.index(client) + task) % 20
            correct = _correct(name, client, after, task, kept, examples)
            before = (
                _correct(name, client, after - 1, task, kept, examples) if after > 0 else correct
            )
            yield ScoreRecord(
                client_id=client,
                after_task=after,
                task_index=task,
                num_examples=examples,
                num_correct=correct,
                loss_sum=1.0,
                num_lost=max(0, before - correct),
                num_gained=max(0, correct - before),
                num_compared=examples if after > 0 else 0,
            )


def _correct(name: str, client: str, after: int, task: int, kept: float, examples: int) -> int:
    share = 0.9 * kept ** (after - task) if after >= task else 0.05
    return int(rng_for(0, name, client, after, task).binomial(examples, share))


def _events(rounds: list[RoundRecord]) -> list[EventRecord]:
    failures = [
        EventRecord(
            at=record.committed_at,
            kind="client-failed",
            message=f"{reply.client_id}: {reply.failure_reason}: {reply.failure_detail}",
            data={"client_id": reply.client_id, "step_index": record.step_index},
        )
        for record in rounds
        for reply in record.replies
        if reply.status == "failed"
    ]
    started = EventRecord(at=START, kind="status", message="running: started")
    return [started, *failures]
