"""All steps of a run, in order, from its config alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from orchestrator.config import RunConfig
from orchestrator.store.base import RoundKind
from strategies.arrival import Arrivals
from strategies.protocols import Merger, Probing, Question, Refining, ReplayRounds, RoundPlace
from strategies.types import ClientId


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One element of a run's schedule.

    ``task_index`` is the stage, that of an evaluation the one just done, −1 before the first;
    ``tasks`` are trained on in it; ``seen`` are those learnt so far, with the current ones.  Where
    clients do not meet the same tasks, ``own`` gives those each trains on and ``met`` those it met
    before.  A probe asks ``question`` before the training step that follows it, or after a task's
    last, for the merger.  A replay step trains on memories, the ``repeat``-th time after the
    training round it belongs to.  A head step sums examples of the tasks seen and solves the head
    from them.  ``closes``: the task ends with this step.  ``refines``: it has ended, and the merger
    edits its model by what this probe finds, for the ``repeat``-th time.  ``attempt`` counts how
    often it was begun before and got too few replies.
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
    repeat: int = 0
    closes: bool = False
    refines: bool = False
    attempt: int = 0

    @property
    def path(self) -> tuple[str | int, ...]:
        """What tells this step's random streams from those of others."""
        place = (self.task_index, self.round_index)
        path = place if self.kind != "replay" else ("replay", *place, self.repeat)
        return (*path, "attempt", self.attempt) if self.attempt else path

    @property
    def suffix(self) -> str:
        """What tells the assignments of this attempt from those of the first."""
        return f"/attempt-{self.attempt}" if self.attempt else ""

    @property
    def recalls(self) -> bool:
        """Whether it is about everything the clients have met, not the current tasks alone."""
        return self.kind == "replay" or bool(self.question and self.question.remembered)

    def tasks_of(self, client: ClientId) -> tuple[int, ...]:
        """What ``client`` trains on; nothing where no task has come to it, or all have."""
        return self.own.get(client, self.tasks)

    def met_by(self, client: ClientId) -> tuple[int, ...]:
        """The tasks that came to ``client`` before this stage."""
        return self.met.get(client, tuple(task for task in self.seen if task not in self.tasks))


def schedule(config: RunConfig, num_tasks: int) -> tuple[Step, ...]:
    """Score the untrained model, then train and score task after task.

    Before a round comes the probe its strategies ask for, after it the replay rounds that are due;
    after a stage's rounds the merger's probe, and the sums of a head that is solved.
    """
    askers = [
        s for s in (config.layer_selector(), config.rank_allocator()) if isinstance(s, Probing)
    ]
    merger, replays, solver = config.merger(), config.replay_rounds(), config.head_solver()
    steps, stages = [Step(kind="evaluate", task_index=-1)], _stages(config, num_tasks)
    in_all, before = sum(stage.num_rounds for stage in stages), 0
    for stage in stages:
        for step in _training(stage, askers, merger):
            steps.append(step)
            if step.kind == "train":
                number = before + step.round_index
                last = step.round_index + 1 == stage.num_rounds
                place = RoundPlace(number=number, in_all=in_all, last_of_task=last)
                steps += _replays(replays, step, place)
        before += stage.num_rounds
        if solver:
            steps.append(replace(stage, kind="head", round_index=stage.num_rounds))
        steps.append(replace(stage, kind="evaluate", num_rounds=1, tasks=()))
    return tuple(steps)


def _stages(config: RunConfig, num_tasks: int) -> list[Step]:
    """What is learnt between two rows of the accuracy matrix, as the steps of each have it."""
    everything, rounds = tuple(range(num_tasks)), config.learning.rounds_per_task
    adapted = config.learning.adapted_tasks
    trained = num_tasks if adapted is None else min(adapted, num_tasks)
    if config.learning.mode == "joint":
        step = Step(kind="train", task_index=num_tasks - 1, tasks=everything, seen=everything)
        return [replace(step, num_rounds=rounds * trained)]
    timetable = config.arrivals(num_tasks)
    steps = (
        [_apart(timetable, stage) for stage in range(timetable.num_stages)]
        if timetable
        else [
            Step(kind="train", task_index=task, tasks=(task,), seen=everything[: task + 1])
            for task in everything
        ]
    )
    return [
        replace(step, num_rounds=rounds if adapted is None or stage < adapted else 0)
        for stage, step in enumerate(steps)
    ]


def _apart(timetable: Arrivals, stage: int) -> Step:
    """A stage in which every client has its own task, or none."""
    own = {client: timetable.at(client, stage) for client in timetable.tasks}
    met = {client: timetable.before(client, stage) for client in timetable.tasks}
    tasks = {task for mine in own.values() for task in mine}
    seen = tasks | {task for earlier in met.values() for task in earlier}
    return Step(
        kind="train",
        task_index=stage,
        tasks=tuple(sorted(tasks)),
        seen=tuple(sorted(seen)),
        own=own,
        met=met,
    )


def _training(step: Step, askers: Sequence[Probing], merger: Merger) -> Iterator[Step]:
    """The rounds of a stage, each after its probe, and the merger's own question after the last."""
    last = None
    if isinstance(merger, Probing) and step.num_rounds:
        last = merger.question(step.task_index, step.num_rounds)
    for index in range(step.num_rounds):
        question = _joined([asker.question(step.task_index, index) for asker in askers])
        if question:
            yield replace(step, kind="probe", round_index=index, question=question)
        closes = last is None and index == step.num_rounds - 1
        yield replace(step, round_index=index, closes=closes)
    if last:
        yield replace(step, kind="probe", round_index=step.num_rounds, question=last, closes=True)
    if isinstance(merger, Refining) and step.num_rounds:
        look = replace(step, kind="probe", round_index=step.num_rounds, refines=True)
        for index in range(merger.probes):
            yield replace(look, question=merger.inquiry(), repeat=index)


def _replays(replays: ReplayRounds | None, step: Step, place: RoundPlace) -> Iterator[Step]:
    for index in range(replays.rounds_after(place) if replays else 0):
        yield replace(step, kind="replay", repeat=index, closes=False)


def _joined(questions: list[Question | None]) -> Question | None:
    """One probe that answers all."""
    asked = [question for question in questions if question]
    if not asked:
        return None
    return Question(
        statistics=tuple(dict.fromkeys(s for question in asked for s in question.statistics)),
        batches=max(question.batches for question in asked),
        max_rank=max(question.max_rank for question in asked),
        remembered=any(question.remembered for question in asked),
    )
