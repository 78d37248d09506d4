"""Who does what in the next step: pure functions of config, state and what is known of clients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from orchestrator import heads, recall
from orchestrator.config import RunConfig
from orchestrator.federation import Federation
from orchestrator.fleet import Fleet
from orchestrator.outgoing import Kept, Sender
from orchestrator.recall import RECALL
from orchestrator.schedule import Step, schedule
from orchestrator.shapes import largest_reply
from strategies.compression.chain import bytes_per_value
from strategies.errors import StrategyError
from strategies.lora import factors_of, spectrum
from strategies.protocols import Adaptive, Alternating, Personalizing, Probing
from strategies.rng import rng_for, seed_for
from strategies.types import (
    HEAD,
    LORA_A,
    Array,
    Assignment,
    ClientId,
    ClientProfile,
    Dense,
    Evaluation,
    GlobalState,
    GroupName,
    GroupPlan,
    Holding,
    LowRank,
    Probe,
    ReplayDirective,
    RoundBudget,
    RoundView,
    Selection,
    Statistic,
    Tensors,
    Work,
)

SELECTION, RANK, AGGREGATION, MERGING = "layer-selection", "rank", "aggregation", "merging"
"""Names of what is remembered in a state, by kind of strategy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """An assignment, the tensors that travel with it, and how long an answer may be.

    ``holding`` is what the client has once it has answered.
    """

    assignment: Assignment
    tensors: Tensors
    max_reply_bytes: int
    holding: Holding = field(default_factory=Holding)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A step with everybody's orders and the view it was planned from.

    ``notes`` say what was decided against expectation.
    """

    step_index: int
    step: Step
    orders: tuple[Order, ...]
    view: RoundView
    notes: tuple[str, ...] = field(default=())

    @property
    def idle(self) -> bool:
        """No client is at a task it has examples of: there is nothing to do, and nothing wrong."""
        return self.step.kind != "evaluate" and not self.view.clients


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
    """
    steps = schedule(config, len(federation.tasks))
    if state.step_index >= len(steps):
        return None
    planner = _Planner(
        run_id=run_id,
        config=config,
        federation=federation,
        state=state,
        fleet=fleet,
        step=steps[state.step_index],
        release=release,
    )
    match planner.step.kind:
        case "evaluate":
            return planner.evaluation()
        case "probe":
            return planner.probe()
        case "head":
            return planner.head()
        case "replay":
            return planner.replay()
        case "train":
            return planner.training()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Planner:
    """Plans one step; every method is a pure function of these fields."""

    run_id: str
    config: RunConfig
    federation: Federation
    state: GlobalState
    fleet: Fleet
    step: Step
    release: int | None

    def evaluation(self) -> Plan:
        """Score all tasks on everybody who holds test examples."""
        everything = tuple(range(len(self.federation.tasks)))
        seen = everything if self.step.task_index < 0 else self._seen()
        evaluation = Evaluation(
            tasks=everything,
            seen_tasks=seen,
            release=self.release,
            keep=self.step.task_index >= 0,
        )
        clients = tuple(client for client in self.federation.clients if sum(client.num_test))
        view = self._view(clients)
        kept = self._kept(view)
        orders = [
            self._order(client.client_id, {}, kept.get(client.client_id, {}), evaluation=evaluation)
            for client in clients
        ]
        return self._plan(orders, view)

    def probe(self) -> Plan:
        """Ask the cohort of the coming round what its strategies want to know.

        After a task's last round, a cohort of the probe's own answers the merger.
        """
        cohort, _ = self._cohort()
        view, question, learning = self._view(cohort), self.step.question, self.config.learning
        if question is None:
            raise StrategyError(f"probe at step {self.state.step_index} without a question")
        probe = Probe(
            tasks=self.step.tasks,
            statistics=question.statistics,
            batches=question.batches,
            batch_size=learning.batch_size,
            learning_rate=learning.learning_rate,
            max_rank=question.max_rank,
        )
        kept, plans = self._kept(view), self._candidates()
        orders = [
            self._order(
                c.client_id,
                plans,
                kept.get(c.client_id, {}),
                probe=replace(probe, tasks=self.step.tasks_of(c.client_id)),
            )
            for c in cohort
        ]
        return self._plan(orders, view)

    def head(self) -> Plan:
        """Ask everybody for the sums the head is still missing."""
        asked = heads.questions(self.config, self.federation, self.state, self.step)
        clients = tuple(c for c in self.federation.clients if c.client_id in asked)
        view = self._view(clients)
        kept = self._kept(view)
        orders = [
            self._order(client, {HEAD: Dense()}, kept.get(client, {}), probe=probe)
            for client, probe in asked.items()
        ]
        return self._plan(orders, view)

    def training(self) -> Plan:
        """Choose clients, groups and ranks, and send everybody their slice."""
        cohort, notes = self._cohort()
        view = self._view(cohort)
        if not cohort:
            return self._plan([], view, notes)
        selection = self.config.layer_selector().select(
            self._remembering(view, SELECTION),
            rng_for(self.config.seed, "selection", *self.step.path),
        )
        return self._trained(view, selection, self._work(), notes)

    def replay(self) -> Plan:
        """Let those who may remember train what forgets, if anything needs it."""
        strategy, memory = self.config.replay_rounds(), self.state.memories.get(RECALL, {})
        if strategy is None:
            raise StrategyError(f"replay at step {self.state.step_index} without replay rounds")
        seen = recall.view_of(memory)
        chosen = strategy.groups(seen)
        if not chosen:
            worst = max(seen.rises.values(), default=0.0)
            note = f"no replay round: losses of no task have risen by more than {worst:.3f} nats"
            return self._plan([], self._view(()), (note,))
        cohort, notes = self._cohort()
        view = self._view(cohort)
        view = replace(view, budget=replace(view.budget, steps=strategy.steps))
        selection = {client.client_id: chosen for client in cohort}
        work = replace(
            self._work(),
            steps=strategy.steps,
            first_step=0,
            total_steps=strategy.steps,
            methods=(),
            source="memory",
            reports=(),
        )
        return self._trained(view, selection, work, notes)

    def _trained(
        self, view: RoundView, selection: Selection, work: Work, notes: tuple[str, ...]
    ) -> Plan:
        """Everybody's ranks and slice, for what was selected."""
        kept = self._kept(view)
        view = replace(view, carried_bytes=self._carried(view, selection, kept))
        ranks = self.config.rank_allocator().allocate(
            self._remembering(view, RANK),
            selection,
            rng_for(self.config.seed, "ranks", *self.step.path),
        )
        orders, silent = list[Order](), list[str]()
        for client in view.clients:
            chosen, own = selection[client.client_id], ranks[client.client_id]
            plans, left_out = self._group_plans(chosen, own)
            if not plans:
                silent.append(client.client_id)
                continue
            orders.append(
                self._order(
                    client.client_id,
                    plans,
                    kept.get(client.client_id, {}),
                    left_out,
                    work=self._shared_out(work, client),
                    evaluation=self._mid_task_evaluation(),
                )
            )
        if silent:
            notes = (*notes, f"nothing fits their budget, not asked: {', '.join(silent)}")
        return self._plan(orders, view, notes)

    def _plan(self, orders: list[Order], view: RoundView, notes: tuple[str, ...] = ()) -> Plan:
        return Plan(
            step_index=self.state.step_index,
            step=self.step,
            orders=tuple(orders),
            view=view,
            notes=notes,
        )

    def _view(self, clients: tuple[ClientProfile, ...]) -> RoundView:
        learning = self.config.learning
        budget = RoundBudget(
            deadline_seconds=self.config.federation.deadline_seconds,
            tasks=self.step.tasks,
            steps=learning.local_steps,
            batch_size=learning.batch_size,
            bytes_per_value_up=bytes_per_value(self.config.compressors()),
            bytes_per_value_down={"fp32": 4.0, "int8": 1.0}.get(self.config.strategy.downlink, 2.0),
            own_tasks=self.step.own,
        )
        return RoundView(
            task_index=self.step.task_index,
            round_index=self.step.round_index,
            groups=self.federation.model.groups,
            clients=tuple(self.fleet.known(client) for client in clients),
            seed=self.config.seed,
            budget=budget,
            evidence=self.state.evidence,
            spectra=_spectra(self.state.tensors),
        )

    def _carried(
        self, view: RoundView, selection: Selection, kept: Mapping[ClientId, Kept]
    ) -> dict[ClientId, float]:
        """Per client, bytes of the frozen rest of the model that it does not have yet."""
        sender = Sender(state=self.state, downlink=())
        size = view.budget.bytes_per_value_down
        return {
            client: sender.carried_bytes(client, chosen, kept.get(client, {}), size)
            for client, chosen in selection.items()
        }

    def _remembering(self, view: RoundView, kind: str) -> RoundView:
        return replace(view, state=self.state.memories.get(kind, {}))

    def _kept(self, view: RoundView) -> dict[ClientId, Kept]:
        """Per client, what selector and aggregator leave with it."""
        kept = dict[ClientId, dict[GroupName, tuple[str, ...]]]()
        for kind, strategy in (
            (SELECTION, self.config.layer_selector()),
            (AGGREGATION, self.config.aggregator()),
        ):
            if isinstance(strategy, Personalizing):
                for client, own in strategy.kept(self._remembering(view, kind)).items():
                    mine = kept.setdefault(client, {})
                    for group, parts in own.items():
                        mine[group] = tuple(dict.fromkeys((*mine.get(group, ()), *parts)))
        return dict(kept)

    def _cohort(self) -> tuple[tuple[ClientProfile, ...], tuple[str, ...]]:
        """Who trains: drawn evenly from those who hold examples of the tasks, in client order."""
        step, clients = self.step, self.federation.clients
        able = [c for c in clients if any(c.num_train[t] for t in self._tasks_of(c.client_id))]
        size, notes = self.config.cohort_size(), list[str]()
        without = [c.client_id for c in clients if c not in able]
        if without and step.round_index == 0:
            what = "the task they meet" if step.own else f"task {step.task_index}"
            notes.append(f"no training examples of {what}: {', '.join(without)}")
        if len(able) < size:
            notes.append(f"cohort of {len(able)} instead of {size}: no more clients hold examples")
        rng = rng_for(self.config.seed, "cohort", *step.path)
        drawn = np.sort(rng.permutation(len(able))[:size])
        return tuple(able[index] for index in drawn), tuple(notes)

    def _candidates(self) -> dict[GroupName, GroupPlan]:
        """Everything that could be trained, as a probe looks at it."""
        rank, plans = self.config.rank_allocator().max_rank, dict[GroupName, GroupPlan]()
        for spec in self.federation.model.groups:
            if spec.kind == "linear" and spec.linear:
                plans[spec.name] = LowRank(rank=min(rank, *spec.linear)) if rank else Dense()
            elif spec.kind == "head":
                plans[spec.name] = Dense()
        return plans

    def _group_plans(
        self, chosen: Sequence[GroupName], ranks: Mapping[GroupName, int]
    ) -> tuple[dict[GroupName, GroupPlan], frozenset[GroupName]]:
        """How each chosen group is trained, and those the client is not even sent."""
        specs, aggregator = self.federation.groups(), self.config.aggregator()
        train_a, train_b = True, True
        if isinstance(aggregator, Alternating):
            train_a, train_b = aggregator.trained_factors(self._rounds_before())
        plans, left_out = dict[GroupName, GroupPlan](), set[GroupName]()
        for name in chosen:
            if name not in specs:
                raise StrategyError(
                    f"layer selection chose group {name!r}, which the model does not have"
                )
            if name not in ranks:
                plans[name] = Dense()
            elif ranks[name]:
                plans[name] = LowRank(rank=ranks[name], train_a=train_a, train_b=train_b)
            else:
                left_out.add(name)
        return plans, frozenset(left_out)

    def _rounds_before(self) -> int:
        """Rounds of training before this one, over all tasks."""
        steps = schedule(self.config, len(self.federation.tasks))[: self.state.step_index]
        return sum(step.kind == "train" for step in steps)

    def _order(
        self,
        client: ClientId,
        plans: Mapping[GroupName, GroupPlan],
        kept: Kept,
        left_out: frozenset[GroupName] = frozenset(),
        **asked: Any,  # exactly one or two of work, evaluation and probe, as Assignment has them
    ) -> Order:
        sender = Sender(state=self.state, downlink=self.config.downlink_choices())
        parcel = sender.parcel(client, plans, kept, left_out)
        step, index, specs = self.step, self.state.step_index, self.federation.groups()
        assignment = Assignment(
            assignment_id=f"{self.run_id}/{index:05d}/{client}",
            run_id=self.run_id,
            client_id=client,
            step_index=index,
            task_index=step.task_index,
            round_index=step.round_index,
            recipe=self.config.shared_recipe().model_dump_json(),
            base_digest=self.federation.model.base_digest,
            groups=plans,
            scale=self.config.adapter.scale,
            seed=seed_for(self.config.seed, client, *step.path),
            met=step.met_by(client),
            downlink=self.config.downlink_choices(),
            kept=kept,
            held=parcel.held,
            **asked,
        )
        return Order(
            assignment=assignment,
            tensors=parcel.tensors,
            max_reply_bytes=largest_reply(assignment, specs),
            holding=parcel.holding,
        )

    def _seen(self) -> tuple[int, ...]:
        """Tasks learnt so far: those that have come to anyone who has examples of them."""
        if not self.step.own:
            return self.step.seen
        come = {c: {*self.step.tasks_of(c), *self.step.met_by(c)} for c in self.step.own}
        clients = self.federation.clients
        return tuple(
            task
            for task in self.step.seen
            if any(c.num_train[task] and task in come[c.client_id] for c in clients)
        )

    def _work(self) -> Work:
        learning, step = self.config.learning, self.step
        return Work(
            tasks=step.tasks,
            steps=learning.local_steps,
            batch_size=learning.batch_size,
            first_step=step.round_index * learning.local_steps,
            total_steps=step.num_rounds * learning.local_steps,
            optimization=learning.optimization(),
            methods=tuple(method.as_choice() for method in learning.methods),
            replay=self.config.replay_directive(self.config.replay.share),
            compression=self.config.uplink_choices(),
            reports=_reports(self.config),
        )

    def _tasks_of(self, client: ClientId) -> tuple[int, ...]:
        """Whose examples a client trains on: for a replay round, of every task it has met."""
        own = self.step.tasks_of(client)
        return (*self.step.met_by(client), *own) if self.step.kind == "replay" else own

    def _shared_out(self, work: Work, client: ClientProfile) -> Work:
        """A client's own part in a round's work."""
        tasks = self._tasks_of(client.client_id)
        return replace(work, tasks=tasks, replay=self._replay(client))

    def _replay(self, client: ClientProfile) -> ReplayDirective:
        """What a client's memory is to do, its share by what its tasks have lost."""
        share, steering = self.config.replay.share, self.config.replay.steering
        if steering:
            memory = self.state.memories.get(RECALL, {})
            share = recall.share_of(steering, share, client, memory)
        return self.config.replay_directive(share)

    def _mid_task_evaluation(self) -> Evaluation | None:
        if not self.config.evaluation.each_round:
            return None
        seen = self._seen()
        return Evaluation(
            tasks=seen,
            seen_tasks=seen,
            max_examples=self.config.evaluation.max_examples,
        )


def uses_evidence(config: RunConfig) -> bool:
    """Whether any strategy reads what clients report."""
    strategies = (config.layer_selector(), config.rank_allocator(), config.merger())
    return any(isinstance(strategy, Probing | Adaptive) for strategy in strategies)


def _reports(config: RunConfig) -> tuple[Statistic, ...]:
    strategies = (config.layer_selector(), config.rank_allocator())
    wanted = [s.reports for s in strategies if isinstance(s, Adaptive)]
    return tuple(dict.fromkeys(name for names in wanted for name in names))


def _spectra(tensors: Tensors) -> dict[GroupName, Array]:
    groups = dict.fromkeys(key.group for key in tensors if key.part == LORA_A)
    factors = {group: factors_of(tensors, group) for group in groups}
    return {group: spectrum(pair) for group, pair in factors.items() if pair is not None}
