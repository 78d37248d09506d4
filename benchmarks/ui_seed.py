"""A run database of any size for the dashboard's benchmark.

A few runs are committed whole by the store itself.  All others are copies of these made in SQL:
their steps, sums, scores and events are the same, with names, dates and results of their own, but
their replies are left out, because 50 million of them would fill a disk.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import numpy as np
from sqlalchemy import Connection, text

from orchestrator.config import parse_config
from orchestrator.store import SqlRunStore, open_store
from orchestrator.store.address import make_engine
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

START: Final = datetime(2026, 1, 1, tzinfo=UTC)
MODULES: Final = (
    "attention.self.query", "attention.self.key", "attention.self.value",
    "attention.output.dense", "intermediate.dense", "output.dense",
)  # fmt: skip
GROUPS: Final = tuple(f"encoder.layer.{b}.{m}" for b in range(6) for m in MODULES)  # MiniLM's
KINDS: Final[tuple[ClientKind, ...]] = ("edge", "cpu", "gpu")
REASONS: Final = ("deadline", "unreachable", "crashed")
_SCORE_COLUMNS: Final = ", ".join(ScoreRecord.__dataclass_fields__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much there is; ``whole`` of the runs have their replies."""

    runs: int = 1000
    rounds: int = 500
    clients: int = 100
    tasks: int = 10
    whole: int = 2


def seed(url: str, size: Size) -> tuple[list[str], list[str]]:
    """Fill an empty SQLite database; ids of the whole runs, and of the copies."""
    store = open_store(url)
    whole = [_whole_run(store, index, size) for index in range(min(size.whole, size.runs))]
    engine, copies = make_engine(url), list[str]()
    for index in range(len(whole), size.runs):
        with engine.begin() as connection:
            copies.append(_copied(connection, whole[index % len(whole)], index))
    with engine.begin() as connection:
        connection.execute(text("ANALYZE"))
    engine.dispose()
    return whole, copies


def _whole_run(store: SqlRunStore, index: int, size: Size) -> str:
    """One run as its orchestrator would have committed it."""
    tree = _config(index, size)
    made = store.create_run(
        name=tree["name"],
        config=parse_config(tree).model_dump(mode="json"),
        config_digest=f"{index:012x}",
        code_version="0.1.0",
        environment={"python": "3.11"},
    )
    created, running = [RunStatus.CREATED], [RunStatus.RUNNING]
    store.transition(made.run_id, RunStatus.RUNNING, expected=created, reason="started")
    store.describe(made.run_id, task_names=[f"domain-{task}" for task in range(size.tasks)])
    for record in records(made, index, size):
        store.commit_round(made.run_id, record)
    store.renew_lease(made.run_id, "seed", timedelta(0), progress=_progress(index, size))
    store.transition(made.run_id, RunStatus.COMPLETED, expected=running, reason="all steps done")
    return made.run_id


def records(run: RunRecord, index: int, size: Size) -> Iterator[RoundRecord]:
    """The steps of a run: the untrained model scored, then per task its rounds and a scoring."""
    step, per_task = 0, max(1, size.rounds // size.tasks)
    yield _record(run, index, size, (step, -1, 0, False))
    for task in range(size.tasks):
        for number in range(per_task):
            step += 1
            yield _record(run, index, size, (step, task, number, True))
        step += 1
        yield _record(run, index, size, (step, task, 0, False))


def _record(
    run: RunRecord, index: int, size: Size, where: tuple[int, int, int, bool]
) -> RoundRecord:
    step, task, number, train = where
    rng = rng_for(index, "step", step)
    values = rng.random((2, len(GROUPS))) * 1e-2
    replies = tuple(
        _reply(run, step, client, train=train, draw=float(draw))
        for client, draw in zip(client_ids(size.clients), rng.random(size.clients), strict=True)
    )
    at = START + timedelta(seconds=30 * step)
    return RoundRecord(
        step_index=step,
        task_index=task,
        round_index=number,
        kind="train" if train else "evaluate",
        committed_at=at,
        checkpoint=f"{index:08x}{step:056x}",
        seconds={"exchange": 5.0 + float(rng.random()), "aggregate": 0.3, "checkpoint": 0.05},
        metrics={"loss": 2.0 / (1 + number)} if train else {},
        truncation=dict(zip(GROUPS, values[0].tolist(), strict=True)) if train else {},
        drift=dict(zip(GROUPS, values[1].tolist(), strict=True)) if train else {},
        replies=replies,
        scores=() if train else tuple(_scores(rng, task, size)),
        events=tuple(
            EventRecord(at=at, kind="client-failed", message=f"{r.client_id}: {r.failure_reason}")
            for r in replies
            if r.status == "failed"
        ),
    )


def _reply(run: RunRecord, step: int, client: str, *, train: bool, draw: float) -> ReplyRecord:
    failed = draw < 0.02
    rank = (2, 4, 8, 16)[int(client[-2:]) % 4]
    chosen = GROUPS[-6 * (1 + int(client[-2:]) % 6) :]
    return ReplyRecord(
        assignment_id=f"{run.run_id}/{step:05d}/{client}",
        client_id=client,
        status="failed" if failed else "ok",
        failure_reason=REASONS[int(draw * 150)] if failed else None,
        failure_detail="no answer within 60 s" if failed else None,
        num_examples=128 if train and not failed else 0,
        ranks=dict.fromkeys(chosen, rank) | {"head": 0} if train else {},
        bytes_down=400_000,
        bytes_up=0 if failed else 390_000,
        seconds={"load": 0.1, "train": 4 * draw, "compute": 0.1 + 4 * draw, "total": 5.0},
        metrics={"loss": 1.0 + draw, "new": 96.0, "replayed": 32.0, "flops": 1e12,
                 "uplink_bytes_per_second": 1e6 * draw, "downlink_bytes_per_second": 5e6 * draw}
        if train and not failed else {},
        peak_memory_bytes=int(7e8 * (1 + draw)),
        client_kind=KINDS[int(client[-2:]) % 3],
    )  # fmt: skip


def _scores(rng: np.random.Generator, after: int, size: Size) -> Iterator[ScoreRecord]:
    for client in client_ids(size.clients):
        for task in range(size.tasks):
            share = 0.9 * 0.96 ** (after - task) if after >= task else 0.05
            yield ScoreRecord(
                client_id=client,
                after_task=after,
                task_index=task,
                num_examples=40,
                num_correct=int(rng.binomial(40, share)),
                loss_sum=12.5,
                num_compared=40 if after > 0 else 0,
            )


def _copied(connection: Connection, source: str, index: int) -> str:
    """One more run like ``source``, without its replies; its id."""
    created = START - timedelta(minutes=index)
    run_id = f"{created:%Y%m%d-%H%M%S}-{index:04x}"
    status = ("completed", "completed", "completed", "interrupted", "failed")[index % 5]
    values = {
        "id": run_id,
        "source": source,
        "name": f"sweep-{index // 10}-{index % 10}",
        "status": status,
        "created": f"{created:%Y-%m-%d %H:%M:%S.%f}",
        "acc": 0.5 + index % 400 / 1000,
        "by": index * 1_000_000,
        "tag": f"sweep-{index // 100}",
    }
    for statement in _COPIES:
        connection.execute(text(statement), values)
    return run_id


def _rest(table: str, skipped: tuple[str, ...]) -> str:
    from orchestrator.store.tables import Table

    columns = Table.metadata.tables[table].columns
    return ", ".join(c.name for c in columns if c.name not in skipped)


_RUN: Final = _rest("runs", ("run_id", "name", "status", "created_at", "acc"))
_ROUND: Final = _rest("rounds", ("round_id", "run_id"))
_CLIENT: Final = _rest("run_clients", ("run_id",))
_EVENT: Final = _rest("run_events", ("event_id", "run_id"))
# Names of our own tables and columns, no text of anybody's.
_COPIES: Final = (
    f"INSERT INTO runs (run_id, name, status, created_at, acc, {_RUN}) "  # noqa: S608
    f"SELECT :id, :name, :status, :created, :acc, {_RUN} FROM runs WHERE run_id = :source",
    "INSERT INTO run_tags (run_id, tag) VALUES (:id, :tag)",
    f"INSERT INTO rounds (round_id, run_id, {_ROUND}) "  # noqa: S608
    f"SELECT round_id + :by, :id, {_ROUND} FROM rounds WHERE run_id = :source",
    f"INSERT INTO scores (round_id, {_SCORE_COLUMNS}) "  # noqa: S608
    f"SELECT round_id + :by, {_SCORE_COLUMNS} FROM scores WHERE round_id IN "
    "(SELECT round_id FROM rounds WHERE run_id = :source) ORDER BY score_id",
    f"INSERT INTO run_clients (run_id, {_CLIENT}) "  # noqa: S608
    f"SELECT :id, {_CLIENT} FROM run_clients WHERE run_id = :source",
    f"INSERT INTO run_events (run_id, {_EVENT}) "  # noqa: S608
    f"SELECT :id, {_EVENT} FROM run_events WHERE run_id = :source ORDER BY event_id",
)


def _progress(index: int, size: Size) -> dict[str, Any]:
    return {
        "acc": 0.5 + index % 400 / 1000,
        "forgetting": 0.1,
        "bwt": -0.1,
        "bytes_up": 390_000 * size.rounds * size.clients,
        "bytes_down": 400_000 * size.rounds * size.clients,
        "rounds": size.rounds,
        "steps": size.rounds + size.tasks + 1,
        "steps_done": size.rounds + size.tasks + 1,
    }


def _config(index: int, size: Size) -> dict[str, Any]:
    return {
        "name": f"whole-{index}",
        "seed": index,
        "model": {"task": "sequence-classification", "name": "minilm", "pooling": "mean"},
        "data": {"source": "jsonl", "train": "train.jsonl", "test": "test.jsonl"},
        "stream": {"kind": "class-incremental", "classes_per_task": 15},
        "federation": {"clients": size.clients},
        "learning": {"rounds_per_task": size.rounds // size.tasks, "methods": [{"name": "er"}]},
        "strategy": {"rank": {"name": "fixed", "rank": 8 + index % 8}},
    }
