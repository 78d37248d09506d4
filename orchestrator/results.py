"""The JSON documents that results are given in; ``docs/json.md`` explains them to their readers.

``None`` is null: not measured, not known yet, or not a number.  Bytes are those of the serialised
messages.  Seconds are wall-clock.  Times are ISO 8601 in UTC.  All indices count from 0.
"""

from __future__ import annotations

from typing import Any, Literal, TypedDict

from orchestrator.store.base import RoundKind
from strategies.types import ClientKind


class Metrics(TypedDict):
    """Read off an accuracy matrix; conventions in ``orchestrator.metrics``."""

    acc: float | None
    aia: float | None
    bwt: float | None
    fwt: float | None
    forgetting: float | None
    learning_accuracy: float | None


class Listed(Metrics):
    """A run in a listing, as it last published itself."""

    run_id: str
    name: str
    status: str
    created_at: str
    started_at: str | None
    ended_at: str | None
    duration_seconds: float | None
    config_digest: str
    seed: int | None
    num_tasks: int
    bytes_up: int | None
    bytes_down: int | None
    rounds: int | None
    adapter_path: str | None
    tags: list[str]


class Listing(TypedDict):
    """``perennial runs``; newest first."""

    schema_version: int
    runs: list[Listed]


class ShownReply(TypedDict):
    """One client's part in a step.  ``ranks`` maps trained groups to LoRA ranks, 0 is dense."""

    client_id: str
    status: Literal["ok", "failed"]
    failure_reason: str | None
    failure_detail: str | None
    num_examples: int
    bytes_up: int
    bytes_down: int
    seconds: dict[str, float | None]
    metrics: dict[str, float | None]
    ranks: dict[str, int]
    peak_memory_bytes: int


class SummedRound(TypedDict):
    """One committed step without its replies; ``task`` is −1 where the untrained model was scored.

    ``seconds`` is the server's time by phase, ``client_seconds`` the clients' own, summed.
    ``accuracy`` is that of the state the step began with, where it was scored during a task.
    """

    step: int
    kind: RoundKind
    task: int
    round: int
    committed_at: str
    loss: float | None
    seconds: dict[str, float | None]
    client_seconds: dict[str, float | None]
    bytes_up: int
    bytes_down: int
    clients_ok: int
    clients_failed: int
    truncation_max: float | None
    drift: dict[str, float]
    replayed: float | None
    accuracy: float | None
    staleness: float | None
    intruders: float | None


class ShownRound(SummedRound):
    """One committed step."""

    replies: list[ShownReply]


class ShownClient(TypedDict):
    """A client over the whole run; ``ranks`` are those of the last round it trained in.

    ``kind`` is what it last said it is, None in runs recorded before that was kept.
    ``memory_plan`` says how that round was cut to fit the client's limit, None without one.
    ``quarantine`` are the faults it is in quarantine for, None where it is not.
    """

    client_id: str
    kind: ClientKind | None
    rounds: int
    num_examples: int
    bytes_up: int
    bytes_down: int
    seconds: float | None
    failures: int
    failure_reasons: list[str]
    quarantine: str | None
    acc: float | None
    forgetting: float | None
    peak_memory_bytes: int
    ranks: dict[str, int]
    memory_plan: str | None


class Spread(TypedDict):
    """A metric over clients, each counted once."""

    mean: float | None
    worst_decile: float | None


class FlipCounts(TypedDict):
    """Of the examples compared, those that went from right to wrong, and from wrong to right."""

    num_lost: int
    num_gained: int
    num_compared: int
    negative_flip_rate: float | None
    positive_flip_rate: float | None


class TaskFlips(FlipCounts):
    """On one task."""

    task: int


class ShownRelease(FlipCounts):
    """What became of the state after a task; the counts are over the tasks learnt before.

    ``compared_with`` is the task of the last published state, ``flips`` the counts per task.
    """

    task: int
    step: int
    published: bool
    reasons: list[str]
    path: str | None
    compared_with: int | None
    flips: list[TaskFlips]


class LostTask(TypedDict):
    """What a task has lost against its ``best``, and the task whose learning cost it most."""

    task: int
    lost: float
    best: float
    best_after: int
    final: float
    costliest: int | None
    costliest_drop: float | None


class LosingClient(TypedDict):
    """What a client has lost on its own examples, and the ``task`` of which it has lost most."""

    client_id: str
    forgetting: float
    task: int
    task_lost: float


class DriftingGroup(TypedDict):
    """How far a group's values moved in a round, and the ``task`` in which they moved most."""

    group: str
    drift: float
    task: int


class ReplayCost(TypedDict):
    """Examples count each time a step is taken on them; the seconds are an estimate."""

    num_replayed: int
    num_trained: int
    share: float | None
    seconds: float | None


class ForgettingExplained(TypedDict):
    """Where forgetting happened, what lost or moved most first."""

    tasks: list[LostTask]
    clients: list[LosingClient]
    groups: list[DriftingGroup]
    replay: ReplayCost


class ShownEvent(TypedDict):
    """Something that happened to a run."""

    at: str
    kind: str
    message: str
    data: dict[str, Any]


class Outline(Metrics):
    """What a comparison needs of a run.

    ``last_row`` is the newest row of the accuracy matrix that was measured, ``average_accuracy``
    has an entry per row but the first.
    """

    run_id: str
    name: str
    status: str
    config_digest: str
    seed: int | None
    created_at: str
    started_at: str | None
    ended_at: str | None
    duration_seconds: float | None
    last_row: int
    average_accuracy: list[float | None]
    bytes_up: int
    bytes_down: int
    config: dict[str, Any]
    tags: list[str]


class Overview(Outline):
    """What there is to say of a run besides its steps, clients and events.

    ``accuracy_matrix`` has a row per stage and one before, the untrained model; a stage is a task
    where ``arrival`` is ``together``.  By row ``learnt_at[j]`` task j counts as learnt.
    ``forgetting_per_task`` has an entry per task up to the last learnt before the last row.
    """

    schema_version: int
    reason: str
    code_version: str
    tasks: list[str]
    tasks_learnt: int
    arrival: str
    learnt_at: list[int]
    accuracy_matrix: list[list[float | None]]
    forgetting_per_task: list[float | None]
    acc_over_clients: Spread
    forgetting_over_clients: Spread
    forgetting_explained: ForgettingExplained
    releases: list[ShownRelease]
    adapter_path: str | None
    report_path: str | None
    checkpoint: str | None
    environment: dict[str, str]


class Show(Overview):
    """``perennial show``."""

    rounds: list[ShownRound]
    clients: list[ShownClient]
    events: list[ShownEvent]


class ComparedRun(TypedDict):
    """A column of a comparison."""

    run_id: str
    name: str
    status: str
    config_digest: str


class ComparedResult(TypedDict):
    """A result, one value per run."""

    metric: str
    values: list[float | None]


class ComparedSetting(TypedDict):
    """A setting in which the runs differ, one value per run, null where a run has no such key."""

    key: str
    values: list[Any]


class Comparison(TypedDict):
    """``perennial compare``."""

    schema_version: int
    runs: list[ComparedRun]
    results: list[ComparedResult]
    config: list[ComparedSetting]
