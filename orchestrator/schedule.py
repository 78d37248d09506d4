"""All steps of a run, in order, from its config alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from orchestrator.config import RunConfig
from orchestrator.store.base import RoundKind
from strategies.arrival import Arrivals
from strategies.protocols import Probing, Question
from strategies.types import ClientId


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One element of a run's schedule.

    ``task_index`` is the stage, that of an evaluation the one just done, −1 before the first;
    ``tasks`` are trained on in it; ``seen`` are those learnt so far, with the current ones.  Where
    clients do not meet the same tasks, ``own`` gives those each trains on and ``met`` those it met
    before.  A probe asks ``question`` before the training step that follows it.
    """

    kind: RoundKind
    task_index: int
    round_index: int = 0
    num_rounds: int = 1
    tasks: tuple[int, ...] = ()
    seen: tuple[int, ...] = ()
    question: Question | None = None
    own: Mapping[ClientId, tuple[int, ...]] = field(default_factory=dict)
    met: Mapping[ClientId, tuple[int, ...]] = field(default_factory=dict)

    def tasks_of(self, client: ClientId) -> tuple[int, ...]:
        """What ``client`` trains on; nothing where no task has come to it, or all have."""
        return self.own.get(client, self.tasks)

    def met_by(self, client: ClientId) -> tuple[int, ...]:
        """The tasks that came to ``client`` before this stage."""
        return self.met.get(client, tuple(task for task in self.seen if task not in self.tasks))


@dataclass(frozen=True, slots=True)
class _Stage:
    """What is learnt between two rows of the accuracy matrix."""

    task_index: int
    num_rounds: int
    tasks: tuple[int, ...]
    seen: tuple[int, ...]
    own: Mapping[ClientId, tuple[int, ...]] = field(default_factory=dict)
    met: Mapping[ClientId, tuple[int, ...]] = field(default_factory=dict)


def schedule(config: RunConfig, num_tasks: int) -> tuple[Step, ...]:
    """Score the untrained model, then train and score task after task; probe where asked for."""
    askers = [
        s for s in (config.layer_selector(), config.rank_allocator()) if isinstance(s, Probing)
    ]
    steps = [Step(kind="evaluate", task_index=-1)]
    for stage in _stages(config, num_tasks):
        steps += _training(stage, askers)
        steps.append(
            Step(
                kind="evaluate",
                task_index=stage.task_index,
                seen=stage.seen,
                own=stage.own,
                met=stage.met,
            )
        )
    return tuple(steps)


def _stages(config: RunConfig, num_tasks: int) -> list[_Stage]:
    everything, rounds = tuple(range(num_tasks)), config.learning.rounds_per_task
    if config.learning.mode == "joint":
        return [_Stage(num_tasks - 1, rounds * num_tasks, everything, everything)]
    timetable = config.arrivals(num_tasks)
    if timetable:
        return [_apart(timetable, stage, rounds) for stage in range(timetable.num_stages)]
    return [_Stage(task, rounds, (task,), everything[: task + 1]) for task in everything]


def _apart(timetable: Arrivals, stage: int, rounds: int) -> _Stage:
    """A stage in which every client has its own task, or none."""
    own = {client: timetable.at(client, stage) for client in timetable.tasks}
    met = {client: timetable.before(client, stage) for client in timetable.tasks}
    tasks = {task for mine in own.values() for task in mine}
    seen = tasks | {task for earlier in met.values() for task in earlier}
    return _Stage(stage, rounds, tuple(sorted(tasks)), tuple(sorted(seen)), own, met)


def _training(stage: _Stage, askers: Sequence[Probing]) -> Iterator[Step]:
    for index in range(stage.num_rounds):
        question = _joined([asker.question(stage.task_index, index) for asker in askers])
        for kind in ("probe", "train") if question else ("train",):
            yield Step(
                kind=kind,
                task_index=stage.task_index,
                round_index=index,
                num_rounds=stage.num_rounds,
                tasks=stage.tasks,
                seen=stage.seen,
                own=stage.own,
                met=stage.met,
                question=question if kind == "probe" else None,
            )


def _joined(questions: list[Question | None]) -> Question | None:
    """One probe that answers all."""
    asked = [question for question in questions if question]
    if not asked:
        return None
    return Question(
        statistics=tuple(dict.fromkeys(s for question in asked for s in question.statistics)),
        batches=max(question.batches for question in asked),
        max_rank=max(question.max_rank for question in asked),
    )
