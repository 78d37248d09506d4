"""All steps of a run, in order, from its config alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from orchestrator.config import RunConfig
from orchestrator.store.base import RoundKind
from strategies.protocols import Probing, Question, RoundPlace


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One element of a run's schedule.

    ``tasks`` are trained on; ``seen`` are those learnt so far, with the current ones.  An
    evaluation's ``task_index`` is the task just learnt, −1 before the first.  A probe asks
    ``question`` before the training step that follows it, or after a task's last, for the merger.
    A replay step trains on memories, the ``repeat``-th time after the training round it belongs to.
    A head step sums examples of the tasks seen and solves the head from them.  ``closes``: the task
    ends with this step.
    """

    kind: RoundKind
    task_index: int
    round_index: int = 0
    num_rounds: int = 1
    tasks: tuple[int, ...] = ()
    seen: tuple[int, ...] = ()
    question: Question | None = None
    repeat: int = 0
    closes: bool = False

    @property
    def path(self) -> tuple[str | int, ...]:
        """What tells this step's random streams from those of others."""
        place = (self.task_index, self.round_index)
        return place if self.kind != "replay" else ("replay", *place, self.repeat)


@dataclass(frozen=True, slots=True)
class _Stage:
    """What is learnt between two rows of the accuracy matrix."""

    task_index: int
    num_rounds: int
    tasks: tuple[int, ...]
    seen: tuple[int, ...]


def schedule(config: RunConfig, num_tasks: int) -> tuple[Step, ...]:
    """Score the untrained model, then train and score task after task; probe where asked for."""
    askers = [
        s for s in (config.layer_selector(), config.rank_allocator()) if isinstance(s, Probing)
    ]
    steps, merger = [Step(kind="evaluate", task_index=-1)], config.merger()
    stages, replays = _stages(config, num_tasks), config.replay_rounds()
    in_all, before = sum(stage.num_rounds for stage in stages), 0
    for stage in stages:
        last = None
        if isinstance(merger, Probing) and stage.num_rounds:
            last = merger.question(stage.task_index, stage.num_rounds)
        for step in _training(stage, askers, last):
            steps.append(step)
            if step.kind == "train" and replays:
                place = RoundPlace(
                    number=before + step.round_index,
                    in_all=in_all,
                    last_of_task=step.round_index + 1 == stage.num_rounds,
                )
                steps += _replays(step, replays.rounds_after(place))
        before += stage.num_rounds
        if config.head_solver():
            steps.append(_head(stage))
        steps.append(Step(kind="evaluate", task_index=stage.task_index, seen=stage.seen))
    return tuple(steps)


def _stages(config: RunConfig, num_tasks: int) -> list[_Stage]:
    everything, rounds = tuple(range(num_tasks)), config.learning.rounds_per_task
    adapted = config.learning.adapted_tasks
    trained = num_tasks if adapted is None else min(adapted, num_tasks)
    if config.learning.mode == "joint":
        return [_Stage(num_tasks - 1, rounds * trained, everything, everything)]
    return [
        _Stage(task, rounds if task < trained else 0, (task,), everything[: task + 1])
        for task in everything
    ]


def _training(stage: _Stage, askers: Sequence[Probing], last: Question | None) -> Iterator[Step]:
    """The rounds of a stage, each after its probe, and the merger's ``last`` question."""
    common = Step(
        kind="train",
        task_index=stage.task_index,
        num_rounds=stage.num_rounds,
        tasks=stage.tasks,
        seen=stage.seen,
    )
    for index in range(stage.num_rounds):
        question = _joined([asker.question(stage.task_index, index) for asker in askers])
        if question:
            yield replace(common, kind="probe", round_index=index, question=question)
        closes = last is None and index == stage.num_rounds - 1
        yield replace(common, round_index=index, closes=closes)
    if last:
        yield replace(
            common, kind="probe", round_index=stage.num_rounds, question=last, closes=True
        )


def _replays(step: Step, count: int) -> list[Step]:
    return [replace(step, kind="replay", repeat=index, closes=False) for index in range(count)]


def _head(stage: _Stage) -> Step:
    return Step(
        kind="head",
        task_index=stage.task_index,
        round_index=stage.num_rounds,
        num_rounds=stage.num_rounds,
        tasks=stage.tasks,
        seen=stage.seen,
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
