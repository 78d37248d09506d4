"""What happens next and who does what in it: pure functions of config, state and profiles."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from orchestrator.config import RunConfig
from orchestrator.store.base import RoundKind
from strategies.errors import StrategyError, TransportError
from strategies.lora import factors_of, initial_factors, keys_of
from strategies.rng import rng_for, seed_for
from strategies.types import (
    LORA_A,
    LORA_B,
    Array,
    Assignment,
    ClientId,
    ClientProfile,
    Dense,
    Evaluation,
    GlobalState,
    GroupName,
    GroupPlan,
    GroupSpec,
    LowRank,
    ModelDescription,
    ParamKey,
    RoundView,
    TaskInfo,
    Tensors,
    Work,
)

# Header, scores, statistics and per-row counts of an honest answer fit in this many times over.
_SMALL_CHANGE_BYTES: Final = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One element of a run's schedule.

    ``tasks`` are trained on; ``seen`` are those learnt so far, with the current ones.  An
    evaluation's ``task_index`` is the task just learnt, −1 before the first.
    """

    kind: RoundKind
    task_index: int
    round_index: int = 0
    num_rounds: int = 1
    tasks: tuple[int, ...] = ()
    seen: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """An assignment, its slice of the global state, and how long an answer may be."""

    assignment: Assignment
    tensors: Tensors
    max_reply_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Federation:
    """What the clients said of themselves, once they agree."""

    clients: tuple[ClientProfile, ...]  # sorted by id
    tasks: tuple[TaskInfo, ...]
    model: ModelDescription

    def groups(self) -> Mapping[GroupName, GroupSpec]:
        """The model's groups by name."""
        return {group.name: group for group in self.model.groups}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A step with everybody's orders; ``notes`` say what was decided against expectation."""

    step_index: int
    step: Step
    orders: tuple[Order, ...]
    notes: tuple[str, ...] = field(default=())


def agree(profiles: Sequence[ClientProfile]) -> Federation:
    """One federation out of all profiles.

    Raises: TransportError naming the first client whose tasks or base model differ.
    """
    if not profiles:
        raise TransportError("no client answered the request for its profile")
    ordered = sorted(profiles, key=lambda profile: profile.client_id)
    first = ordered[0]
    for other in ordered[1:]:
        if other.model.base_digest != first.model.base_digest:
            raise TransportError(
                f"{other.client_id} has base model {other.model.base_digest[:12]}, "
                f"{first.client_id} has {first.model.base_digest[:12]}; give both the same "
                "checkpoint"
            )
        if other.tasks != first.tasks:
            raise TransportError(
                f"{other.client_id} and {first.client_id} disagree on the tasks or their labels; "
                "declare data.labels and stream.tasks in the run file"
            )
    return Federation(clients=tuple(ordered), tasks=first.tasks, model=first.model)


def schedule(config: RunConfig, num_tasks: int) -> tuple[Step, ...]:
    """All steps of a run: score the untrained model, then train and score task after task."""
    everything = tuple(range(num_tasks))
    if config.learning.mode == "joint":
        rounds = config.learning.rounds_per_task * num_tasks
        stages = [(num_tasks - 1, rounds, everything, everything)]
    else:
        rounds = config.learning.rounds_per_task
        stages = [(task, rounds, (task,), everything[: task + 1]) for task in everything]
    steps = [Step(kind="evaluate", task_index=-1)]
    for task_index, num_rounds, tasks, seen in stages:
        steps += [
            Step(
                kind="train",
                task_index=task_index,
                round_index=index,
                num_rounds=num_rounds,
                tasks=tasks,
                seen=seen,
            )
            for index in range(num_rounds)
        ]
        steps.append(Step(kind="evaluate", task_index=task_index, seen=seen))
    return tuple(steps)


def initial_state(config: RunConfig, federation: Federation) -> GlobalState:
    """The untrained model: A drawn per group from the run's seed, B zero, nothing dense moved."""
    rank, tensors = config.rank_allocator().max_rank, dict[ParamKey, Array]()
    for group in federation.model.groups:
        if rank and group.kind == "linear" and group.linear:
            rng = rng_for(config.seed, "initial-factors", group.name)
            factors = initial_factors(group.linear, min(rank, *group.linear), rng)
            tensors |= zip(keys_of(group.name), factors, strict=True)
    return GlobalState(step_index=0, tensors=tensors)


def plan_step(
    run_id: str, config: RunConfig, federation: Federation, state: GlobalState
) -> Plan | None:
    """Orders for the state's next step, or None after the last."""
    steps = schedule(config, len(federation.tasks))
    if state.step_index >= len(steps):
        return None
    step = steps[state.step_index]
    if step.kind == "evaluate":
        orders = _evaluation_orders(run_id, config, federation, state, step)
        return Plan(step_index=state.step_index, step=step, orders=orders)
    return _training_plan(run_id, config, federation, state, step)


def _evaluation_orders(
    run_id: str, config: RunConfig, federation: Federation, state: GlobalState, step: Step
) -> tuple[Order, ...]:
    everything = tuple(range(len(federation.tasks)))
    evaluation = Evaluation(tasks=everything, seen_tasks=step.seen or everything)
    blank = _blank(run_id, config, federation, state, step)
    tensors = _slice(state.tensors, {})
    return tuple(
        Order(
            assignment=blank(client.client_id, {}, None, evaluation),
            tensors=tensors,
            max_reply_bytes=_SMALL_CHANGE_BYTES,
        )
        for client in federation.clients
        if sum(client.num_test)
    )


def _training_plan(
    run_id: str, config: RunConfig, federation: Federation, state: GlobalState, step: Step
) -> Plan:
    cohort, notes = _cohort(config, federation, step)
    view = RoundView(
        task_index=step.task_index,
        round_index=step.round_index,
        groups=federation.model.groups,
        clients=cohort,
        group_scores=state.group_scores,
    )
    path = (step.task_index, step.round_index)
    selection = config.layer_selector().select(view, rng_for(config.seed, "selection", *path))
    ranks = config.rank_allocator().allocate(view, selection, rng_for(config.seed, "ranks", *path))
    work, evaluation = _work(config, step), _mid_task_evaluation(config, step)
    blank, specs = _blank(run_id, config, federation, state, step), federation.groups()
    orders = []
    for client in cohort:
        chosen = selection[client.client_id]
        plans = {name: _group_plan(name, ranks[client.client_id], specs) for name in chosen}
        assignment = blank(client.client_id, plans, work, evaluation)
        limit = 2 * planned_bytes(plans, specs) + _SMALL_CHANGE_BYTES
        orders.append(
            Order(
                assignment=assignment,
                tensors=_slice(state.tensors, plans),
                max_reply_bytes=limit,
            )
        )
    return Plan(step_index=state.step_index, step=step, orders=tuple(orders), notes=notes)


def _cohort(
    config: RunConfig, federation: Federation, step: Step
) -> tuple[tuple[ClientProfile, ...], tuple[str, ...]]:
    """Who trains: drawn evenly from those who hold examples of the tasks, in client order."""
    able = [c for c in federation.clients if any(c.num_train[task] for task in step.tasks)]
    size, notes = config.cohort_size(), list[str]()
    without = [c.client_id for c in federation.clients if c not in able]
    if without and step.round_index == 0:
        notes.append(f"no training examples of task {step.task_index}: {', '.join(without)}")
    if len(able) < size:
        notes.append(f"cohort of {len(able)} instead of {size}: no more clients hold examples")
    rng = rng_for(config.seed, "cohort", step.task_index, step.round_index)
    drawn = np.sort(rng.permutation(len(able))[:size])
    return tuple(able[index] for index in drawn), tuple(notes)


def _group_plan(
    name: GroupName, ranks: Mapping[GroupName, int], specs: Mapping[GroupName, GroupSpec]
) -> GroupPlan:
    if name not in specs:
        raise StrategyError(f"layer selection chose group {name!r}, which the model does not have")
    return LowRank(rank=ranks[name]) if name in ranks else Dense()


def planned_shapes(plan: GroupPlan, spec: GroupSpec) -> dict[str, tuple[int, ...]]:
    """The parts an update for ``plan`` must hold, with their shapes."""
    if isinstance(plan, Dense):
        return dict(spec.parts)
    if spec.linear is None:
        raise StrategyError(f"group {spec.name!r} is {spec.kind}, LoRA needs a linear one")
    d_out, d_in = spec.linear
    shapes = dict[str, tuple[int, ...]]()
    if plan.train_a:
        shapes[LORA_A] = (plan.rank, d_in)
    if plan.train_b:
        shapes[LORA_B] = (d_out, plan.rank)
    return shapes


def planned_bytes(
    plans: Mapping[GroupName, GroupPlan], specs: Mapping[GroupName, GroupSpec]
) -> int:
    """Bytes of an update's float32 tensors."""
    return 4 * sum(
        math.prod(shape)
        for name, plan in plans.items()
        for shape in planned_shapes(plan, specs[name]).values()
    )


def _work(config: RunConfig, step: Step) -> Work:
    learning = config.learning
    return Work(
        tasks=step.tasks,
        steps=learning.local_steps,
        batch_size=learning.batch_size,
        first_step=step.round_index * learning.local_steps,
        total_steps=step.num_rounds * learning.local_steps,
        optimization=learning.optimization(),
        methods=tuple(method.as_choice() for method in learning.methods),
        replay=config.replay.directive(),
    )


def _mid_task_evaluation(config: RunConfig, step: Step) -> Evaluation | None:
    if not config.evaluation.each_round:
        return None
    return Evaluation(
        tasks=step.seen, seen_tasks=step.seen, max_examples=config.evaluation.max_examples
    )


@dataclass(frozen=True, slots=True)
class _blank:  # noqa: N801 - used like a function
    """Fills in what all assignments of a step share."""

    run_id: str
    config: RunConfig
    federation: Federation
    state: GlobalState
    step: Step

    def __call__(
        self,
        client_id: ClientId,
        groups: Mapping[GroupName, GroupPlan],
        work: Work | None,
        evaluation: Evaluation | None,
    ) -> Assignment:
        step, index = self.step, self.state.step_index
        return Assignment(
            assignment_id=f"{self.run_id}/{index:05d}/{client_id}",
            run_id=self.run_id,
            client_id=client_id,
            step_index=index,
            task_index=step.task_index,
            round_index=step.round_index,
            recipe=self.config.shared_recipe().model_dump_json(),
            base_digest=self.federation.model.base_digest,
            groups=groups,
            scale=self.config.adapter.scale,
            seed=seed_for(self.config.seed, client_id, step.task_index, step.round_index),
            work=work,
            evaluation=evaluation,
        )


def _slice(tensors: Tensors, plans: Mapping[GroupName, GroupPlan]) -> Tensors:
    """What a client must hold: trained groups at their rank, others whole, empty ones left out."""
    sent = dict[ParamKey, Array]()
    for group in dict.fromkeys(key.group for key in tensors):
        sent |= {k: v for k, v in _parts(tensors, group) if factors_of(tensors, group) is None}
        factors, plan = factors_of(tensors, group), plans.get(group)
        if factors is None:
            continue
        if isinstance(plan, LowRank):
            factors = factors.prefix(plan.rank)
        elif not factors.b.any():
            continue
        sent |= zip(keys_of(group), factors, strict=True)
    return sent


def _parts(tensors: Tensors, group: GroupName) -> Iterator[tuple[ParamKey, Array]]:
    return ((key, value) for key, value in tensors.items() if key.group == group)
