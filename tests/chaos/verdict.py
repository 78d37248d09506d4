"""Whether a run that was killed and resumed is the run that was never killed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine, text

from orchestrator.home import Home
from orchestrator.metrics import AccuracyMatrix
from orchestrator.store.base import ReplyRecord, ScoreRecord

Facts = Mapping[str, Any]
"""What a run has left, without what the clock makes of it; the same for runs that are the same."""

# Of what a process was writing when it was killed, this is removed by `perennial gc`.
_SWEPT_LATER = ("blobs/",)


@dataclass(frozen=True, slots=True)
class Verdict:
    """``faults`` in words, none if all is well; ``left`` temporary files somebody removes later."""

    faults: tuple[str, ...]
    left: tuple[str, ...] = field(default=())


def facts(home: Home, run_id: str) -> Facts:
    """Everything that must not depend on whether, when and how often a run was killed."""
    store = home.store()
    record, rounds = store.get_run(run_id), store.rounds(run_id)
    scores = [score for r in rounds for score in r.scores]
    matrix = AccuracyMatrix.of(scores, len(record.task_names)).values
    found = {
        "status": str(record.status),
        "checkpoint": record.checkpoint,
        "checkpoints": [r.checkpoint for r in rounds],
        "accuracy": repr(matrix.tolist()),  # NaN is not equal to itself
        "steps": [(r.step_index, r.kind, r.task_index, r.round_index) for r in rounds],
        "replies": [_reply(x) for r in rounds for x in r.replies],
        "scores": [_score(score) for score in scores],
        "drift": [sorted(r.drift.items()) for r in rounds],
        "simulated": [r.seconds.get("simulated") for r in rounds],
        "adapter": record.adapter_path and Path(record.adapter_path).name,
        "events": _events(home, run_id),
        "published": _contents(home.run_folder(run_id), ("adapters", "candidates")),
        "clients": _contents(home.client_folder, (run_id,)),
    }
    # As it comes back from another process, and without the name of the run.
    plain: Facts = json.loads(json.dumps(found).replace(run_id, "RUN"))
    return plain


def committed(home: Home, run_id: str) -> list[list[Any]]:
    """Step, state and time of every commit."""
    rounds = home.store().rounds(run_id)
    return [[r.step_index, r.checkpoint, r.committed_at.isoformat()] for r in rounds]


def judged(home: Home, run_id: str, expected: Facts, before: Sequence[list[list[Any]]]) -> Verdict:
    """What is wrong with a resumed run; ``before`` are its commits after each kill."""
    found, faults = facts(home, run_id), list[str]()
    for name, value in expected.items():
        if found[name] != value:
            faults.append(f"{name}: {_difference(value, found[name])}")
    now = committed(home, run_id)
    for kept in before:
        if now[: len(kept)] != kept:
            faults.append(f"of {len(kept)} rounds committed before a kill some are lost or changed")
    faults += _orphans(home, run_id)
    left = sorted(str(path.relative_to(home.folder)) for path in _temporary(home.folder))
    faults += [f"{path} is left, and nobody removes it" for path in left if not _swept(path)]
    return Verdict(tuple(faults), tuple(path for path in left if _swept(path)))


def _reply(reply: ReplyRecord) -> tuple[Any, ...]:
    return (
        *(reply.assignment_id, reply.client_id, reply.status, reply.failure_reason),
        *(reply.failure_detail, reply.num_examples, sorted(reply.ranks.items())),
        *(reply.bytes_down, reply.bytes_up, reply.metrics.get("loss")),
    )


def _score(score: ScoreRecord) -> tuple[Any, ...]:
    return tuple(getattr(score, name) for name in ScoreRecord.__dataclass_fields__)


def _events(home: Home, run_id: str) -> list[tuple[str, str]]:
    """What happened to the run, but how its status moved."""
    return [
        (event.kind, event.message.replace(str(home.folder), "HOME"))
        for event in home.store().events(run_id)
        if event.kind != "status"
    ]


def _contents(folder: Path, below: tuple[str, ...]) -> dict[str, str]:
    """Digests of all files that are no temporary ones."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        for name in below
        for path in sorted((folder / name).rglob("*"))
        if path.is_file() and not _is_temporary(path.relative_to(folder))
    }


def _temporary(folder: Path) -> Iterator[Path]:
    return (
        path
        for path in folder.rglob("*")
        if path.is_file() and _is_temporary(path.relative_to(folder))
    )


def _is_temporary(path: Path) -> bool:
    return any(p.startswith(".") or p.endswith((".tmp", ".partial")) for p in path.parts)


def _swept(path: str) -> bool:
    return path.startswith(_SWEPT_LATER)


def _difference(expected: Any, found: Any) -> str:
    if isinstance(expected, dict):
        names = {n for n in expected | found if expected.get(n) != found.get(n)}
        return f"{len(names)} differ: {', '.join(sorted(names)[:3])}"
    if not isinstance(expected, list):
        return f"found {found!r:.200}, expected {expected!r:.200}"
    if len(expected) != len(found):
        extra = [x for x in found if x not in expected] or [x for x in expected if x not in found]
        return f"{len(found)} found, {len(expected)} expected; {extra[:2]!r:.300}"
    first = next(i for i in range(len(found)) if found[i] != expected[i])
    return f"the first that differs is {first}: {found[first]!r:.200}, not {expected[first]!r:.200}"


def _orphans(home: Home, run_id: str) -> Iterator[str]:
    """Rows of rounds that are not there, and events of steps that are not there."""
    engine = create_engine(home.database_url)
    with engine.connect() as connection:
        for table in ("replies", "scores"):
            query = text(  # two names of ours
                f"SELECT COUNT(*) FROM {table} WHERE round_id NOT IN (SELECT round_id FROM rounds)"  # noqa: S608
            )
            if count := connection.execute(query).scalar():
                yield f"{count} rows of {table} belong to no round"
    engine.dispose()
    steps = {r.step_index for r in home.store().rounds(run_id)}
    for event in home.store().events(run_id):
        if event.data.get("step_index", 0) not in steps | {0}:
            yield f"event {event.kind} is of step {event.data['step_index']}, which is not there"
