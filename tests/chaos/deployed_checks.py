"""Whether a run that lost processes on its way ended as its records say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from sqlalchemy import create_engine, make_url, text

from orchestrator.config import parse_config
from orchestrator.home import Home
from orchestrator.schedule import schedule
from orchestrator.store.base import RoundRecord, RunStatus
from strategies.types import GlobalState
from tests.e2e.retold import retold

_TOLERANCE = 1e-6
_ORPHANS = (
    "SELECT count(*) FROM replies WHERE round_id NOT IN (SELECT round_id FROM rounds)",
    "SELECT count(*) FROM scores WHERE round_id NOT IN (SELECT round_id FROM rounds)",
    "SELECT count(*) FROM rounds WHERE run_id NOT IN (SELECT run_id FROM runs)",
    "SELECT count(*) FROM run_events WHERE run_id NOT IN (SELECT run_id FROM runs)",
)


def faults_of(run_id: str, home: Home, work: Path, num_threads: int) -> list[str]:
    """Everything about an ended run that is not as it must be; empty if it ended correctly."""
    store = home.store()
    run, rounds = store.get_run(run_id), list(store.rounds(run_id))
    config = parse_config(run.config, source=run_id)
    steps = len(schedule(config, len(run.task_names)))
    faults = list[str]()
    if run.status is not RunStatus.COMPLETED:
        faults.append(f"{run.status}: {run.reason}")
    if (found := [step.step_index for step in rounds]) != list(range(steps)):
        faults.append(f"steps {found} committed, expected 0 to {steps - 1}, each once")
    faults += _unexplained(run_id, home, rounds)
    faults += [f"{count} row(s) without an owner: {sql}" for sql, count in _orphans(home) if count]
    return faults or _untold(run_id, home, work, num_threads, len(rounds))


def lost_replies(run_id: str, home: Home) -> list[str]:
    """Step, client and reason of every reply that was asked for and did not come."""
    return [
        f"step {step.step_index}: {reply.client_id}: {reply.failure_reason}"
        for step in home.store().rounds(run_id)
        for reply in step.replies
        if reply.status != "ok"
    ]


def _unexplained(run_id: str, home: Home, rounds: list[RoundRecord]) -> list[str]:
    """Clients counted twice in a step, losses without a reason, losses without an event."""
    events = [e.data for e in home.store().events(run_id) if e.kind == "client-failed"]
    told = {(data["client_id"], data["step_index"]) for data in events}
    faults = list[str]()
    for step in rounds:
        clients = [reply.client_id for reply in step.replies]
        if len(clients) != len(set(clients)):
            faults.append(f"step {step.step_index} counts a client twice: {clients}")
        for reply in step.replies:
            key = (reply.client_id, step.step_index)
            explained = reply.failure_reason and reply.failure_detail and key in told
            if reply.status != "ok" and not explained:
                faults.append(f"step {step.step_index}: {reply.client_id} lost without a word")
    return faults


def _orphans(home: Home) -> list[tuple[str, int]]:
    url = make_url(home.database_url)
    if url.drivername == "postgresql":
        url = url.set(drivername="postgresql+psycopg")
    engine = create_engine(url)
    try:
        with engine.connect() as connection:
            return [(sql, int(connection.execute(text(sql)).scalar_one())) for sql in _ORPHANS]
    finally:
        engine.dispose()


def _untold(run_id: str, home: Home, work: Path, num_threads: int, steps: int) -> list[str]:
    """Checkpoints that differ from what the recorded answers lead to."""
    faults, count = list[str](), 0
    for told, kept in retold(run_id, home, work, num_threads):
        if told.tensors.keys() != kept.tensors.keys():
            faults.append(f"step {count}: other tensors than the records lead to")
        elif (worst := _widest(told, kept)) > _TOLERANCE:
            faults.append(f"step {count}: {worst:.3g} away from what the records lead to")
        count += 1
    return faults if count == steps else [*faults, f"{count} of {steps} steps could be retold"]


def _widest(told: GlobalState, kept: GlobalState) -> float:
    return max(
        (float(np.max(np.abs(told.tensors[k] - x), initial=0.0)) for k, x in kept.tensors.items()),
        default=0.0,
    )
