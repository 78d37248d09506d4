"""Who does what in the next step: pure functions of config, state and what is known of clients."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

from orchestrator import heads, memory, recall
from orchestrator.config import RunConfig
from orchestrator.federation import Federation
from orchestrator.fleet import Fleet
from orchestrator.plans import RANK, SELECTION, Order, Plan, listed
from orchestrator.recall import RECALL
from orchestrator.schedule import schedule
from orchestrator.situation import Situation
from orchestrator.store.base import RoundKind
from strategies.cost import CostModel
from strategies.errors import StrategyError
from strategies.fitting import TooLarge
from strategies.protocols import Adaptive
from strategies.rng import rng_for
from strategies.types import (
    HEAD,
    ClientProfile,
    Dense,
    Evaluation,
    GlobalState,
    Probe,
    RoundView,
    Selection,
    Statistic,
    Work,
)


def plan_step(
    run_id: str,
    config: RunConfig,
    federation: Federation,
    state: GlobalState,
    fleet: Fleet,
    *,
    release: int | None = None,
) -> Plan | None:
    """Orders for the state's next step, or None after the last.

    ``release`` is the step that scored the last published state, None before the first.
    Raises: RoundFailedError if quarantine leaves too few clients.
    """
    steps = schedule(config, len(federation.tasks))
    if state.step_index >= len(steps):
        return None
    at = Situation(
        run_id=run_id,
        config=config,
        federation=federation,
        state=state,
        fleet=fleet,
        step=replace(steps[state.step_index], attempt=fleet.attempt),
        release=release,
    )
    if at.step.kind != "evaluate":
        fleet.ward.check(federation, config.federation)
    return _PLANNED[at.step.kind](at)


def _scoring(at: Situation) -> Plan:
    """Score all tasks on everybody who holds test examples."""
    everything = tuple(range(len(at.federation.tasks)))
    seen = everything if at.step.task_index < 0 else at.seen()
    evaluation = Evaluation(
        tasks=everything,
        seen_tasks=seen,
        release=at.release,
        keep=at.step.task_index >= 0,
    )
    clients = tuple(client for client in at.federation.clients if sum(client.num_test))
    view = at.view(clients)
    kept = at.kept(view)
    orders = [
        at.order(client.client_id, {}, kept.get(client.client_id, {}), evaluation=evaluation)
        for client in clients
    ]
    return at.plan(orders, view)


def _probing(at: Situation) -> Plan:
    """Ask the cohort of the coming round what its strategies want to know.

    After a task's last round, a cohort of the probe's own answers the merger.
    """
    cohort, _ = at.cohort()
    view, question, learning = at.view(cohort), at.step.question, at.config.learning
    if question is None:
        raise StrategyError(f"probe at step {at.state.step_index} without a question")
    probe = Probe(
        tasks=at.step.tasks,
        statistics=question.statistics,
        batches=question.batches,
        batch_size=learning.batch_size,
        learning_rate=learning.learning_rate,
        max_rank=question.max_rank,
        remembered=question.remembered,
    )
    kept, plans, notes = at.kept(view), at.candidates(), list[str]()
    orders = list[Order]()
    for client in view.clients:
        own = replace(probe, tasks=at.step.tasks_of(client.client_id))
        fitting = memory.fitted_probe(own, view, client, plans)
        if isinstance(fitting, TooLarge):
            notes.append(memory.refusal(client, fitting))
            continue
        own_kept = kept.get(client.client_id, {})
        orders.append(at.order(client.client_id, plans, own_kept, probe=fitting))
    return at.plan(orders, view, tuple(notes))


def _summing(at: Situation) -> Plan:
    """Ask everybody for the sums the head is still missing."""
    asked = heads.questions(at.config, at.federation, at.state, at.step)
    asked = {client: probe for client, probe in asked.items() if client not in at.fleet.ward.stays}
    clients = tuple(c for c in at.federation.clients if c.client_id in asked)
    view = at.view(clients)
    kept = at.kept(view)
    orders = [
        at.order(client, {HEAD: Dense()}, kept.get(client, {}), probe=probe)
        for client, probe in asked.items()
    ]
    return at.plan(orders, view)


def _training(at: Situation) -> Plan:
    """Choose clients, groups and ranks, and send everybody their slice."""
    cohort, notes = at.cohort()
    view = at.view(cohort)
    if not cohort:
        return at.plan([], view, notes)
    selection = at.config.layer_selector().select(
        at.remembering(view, SELECTION),
        rng_for(at.config.seed, "selection", *at.step.path),
    )
    return _trained(at, view, selection, _work(at), notes)


def _replaying(at: Situation) -> Plan:
    """Let those who may remember train what forgets, if anything needs it."""
    strategy, recalled = at.config.replay_rounds(), at.state.memories.get(RECALL, {})
    if strategy is None:
        raise StrategyError(f"replay at step {at.state.step_index} without replay rounds")
    seen = recall.view_of(recalled)
    chosen = strategy.groups(seen)
    if not chosen:
        worst = max(seen.rises.values(), default=0.0)
        note = f"no replay round: losses of no task have risen by more than {worst:.3f} nats"
        return at.plan([], at.view(()), (note,))
    cohort, notes = at.cohort()
    view = at.view(cohort)
    view = replace(view, budget=replace(view.budget, steps=strategy.steps))
    selection = {client.client_id: chosen for client in cohort}
    work = _work(at)
    work = replace(
        work,
        optimization=work.optimization.scaled(strategy.rate),
        steps=strategy.steps,
        first_step=0,
        total_steps=strategy.steps,
        methods=(),
        source="memory",
        reports=(),
    )
    return _trained(at, view, selection, work, notes)


def _trained(
    at: Situation, view: RoundView, selection: Selection, work: Work, notes: tuple[str, ...]
) -> Plan:
    """Everybody's ranks and slice, for what was selected."""
    kept = at.kept(view)
    view = replace(view, carried_bytes=at.carried(view, selection, kept))
    ranks = at.config.rank_allocator().allocate(
        at.remembering(view, RANK),
        selection,
        rng_for(at.config.seed, "ranks", *at.step.path),
    )
    orders, silent = list[Order](), list[str]()
    for client in view.clients:
        chosen, own = selection[client.client_id], ranks[client.client_id]
        plans, left_out = at.group_plans(chosen, own)
        if not plans:
            silent.append(client.client_id)
            continue
        own_work = memory.fitted(_shared_out(at, work, client), view, client, plans)
        if isinstance(own_work, TooLarge):
            notes = (*notes, memory.refusal(client, own_work))
            continue
        order = at.order(
            client.client_id,
            plans,
            kept.get(client.client_id, {}),
            left_out,
            work=own_work,
            evaluation=_mid_task_evaluation(at),
        )
        costs = CostModel.of(view.groups, view.budget, client)
        expected = costs.compute_seconds(client, plans) or 0.0
        orders.append(replace(order, expected_seconds=expected))
    if silent:
        notes = (*notes, f"nothing fits their budget, not asked: {listed(silent)}")
    return at.plan(orders, view, notes)


def _work(at: Situation) -> Work:
    learning, step = at.config.learning, at.step
    return Work(
        tasks=step.tasks,
        steps=learning.local_steps,
        batch_size=learning.batch_size,
        first_step=step.round_index * learning.local_steps,
        total_steps=step.num_rounds * learning.local_steps,
        optimization=learning.optimization(),
        methods=tuple(method.as_choice() for method in learning.methods),
        replay=at.config.replay_directive(),
        compression=at.config.uplink_choices(),
        reports=_reports(at.config),
    )


def _shared_out(at: Situation, work: Work, client: ClientProfile) -> Work:
    """A client's own part in a round's work: its tasks, its share of replay by what they lost."""
    work = replace(work, tasks=at.tasks_of(client.client_id))
    steering = at.config.replay.steering
    if steering is None:
        return work
    remembered = at.state.memories.get(RECALL, {})
    share = recall.share_of(steering, work.replay.share, client, remembered)
    return replace(work, replay=replace(work.replay, share=share))


def _mid_task_evaluation(at: Situation) -> Evaluation | None:
    if not at.config.evaluation.each_round:
        return None
    seen = at.seen()
    return Evaluation(
        tasks=seen,
        seen_tasks=seen,
        max_examples=at.config.evaluation.max_examples,
    )


def _reports(config: RunConfig) -> tuple[Statistic, ...]:
    strategies = (config.layer_selector(), config.rank_allocator())
    wanted = [s.reports for s in strategies if isinstance(s, Adaptive)]
    return tuple(dict.fromkeys(name for names in wanted for name in names))


_PLANNED: Final[Mapping[RoundKind, Callable[[Situation], Plan]]] = {
    "evaluate": _scoring,
    "probe": _probing,
    "head": _summing,
    "train": _training,
    "replay": _replaying,
}
