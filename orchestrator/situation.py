"""What a step is planned from, and the parts that plans of every kind are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from orchestrator.config import RunConfig
from orchestrator.federation import Federation
from orchestrator.fleet import Fleet
from orchestrator.outgoing import Kept, Sender
from orchestrator.plans import AGGREGATION, SELECTION, Order, Plan, listed
from orchestrator.schedule import Step, schedule
from orchestrator.shapes import largest_reply
from strategies.catalog import WHOLE_BATCH
from strategies.compression.chain import bytes_per_value
from strategies.errors import StrategyError
from strategies.lora import factors_of, spectrum
from strategies.protocols import Alternating, Personalizing
from strategies.rng import rng_for, seed_for
from strategies.types import (
    LORA_A,
    Array,
    Assignment,
    ClientId,
    ClientProfile,
    Dense,
    GlobalState,
    GroupName,
    GroupPlan,
    LowRank,
    RoundBudget,
    RoundView,
    Selection,
    Tensors,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """A run before a step; every method is a pure function of these fields.

    ``release`` is the step that scored the last published state, None before the first.
    """

    run_id: str
    config: RunConfig
    federation: Federation
    state: GlobalState
    fleet: Fleet
    step: Step
    release: int | None = None

    def view(self, clients: tuple[ClientProfile, ...]) -> RoundView:
        learning = self.config.learning
        budget = RoundBudget(
            deadline_seconds=self.config.federation.deadline_seconds,
            tasks=self.step.tasks,
            steps=learning.local_steps,
            batch_size=learning.batch_size,
            bytes_per_value_up=bytes_per_value(self.config.compressors()),
            bytes_per_value_down={"fp32": 4.0, "int8": 1.0}.get(self.config.strategy.downlink, 2.0),
            own_tasks=self.step.own,
            divisible=not WHOLE_BATCH & {method.name for method in learning.methods},
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

    def remembering(self, view: RoundView, kind: str) -> RoundView:
        return replace(view, state=self.state.memories.get(kind, {}))

    def kept(self, view: RoundView) -> dict[ClientId, Kept]:
        """Per client, what selector and aggregator leave with it."""
        kept = dict[ClientId, dict[GroupName, tuple[str, ...]]]()
        for kind, strategy in (
            (SELECTION, self.config.layer_selector()),
            (AGGREGATION, self.config.aggregator()),
        ):
            if isinstance(strategy, Personalizing):
                for client, own in strategy.kept(self.remembering(view, kind)).items():
                    mine = kept.setdefault(client, {})
                    for group, parts in own.items():
                        mine[group] = tuple(dict.fromkeys((*mine.get(group, ()), *parts)))
        return dict(kept)

    def carried(
        self, view: RoundView, selection: Selection, kept: Mapping[ClientId, Kept]
    ) -> dict[ClientId, float]:
        """Per client, bytes of the frozen rest of the model that it does not have yet."""
        sender = Sender(state=self.state, downlink=())
        size = view.budget.bytes_per_value_down
        return {
            client: sender.carried_bytes(client, chosen, kept.get(client, {}), size)
            for client, chosen in selection.items()
        }

    def cohort(self) -> tuple[tuple[ClientProfile, ...], tuple[str, ...]]:
        """Who trains: drawn evenly from those who hold examples of the tasks, in client order.

        Nobody in quarantine is among them.  With a buffer, as many as make up a cohort together
        with those still at work.
        """
        step, able, without = self.step, list[ClientProfile](), list[str]()
        for client in self.federation.clients:
            if any(client.num_train[task] for task in self.tasks_of(client.client_id)):
                able.append(client)
            else:
                without.append(client.client_id)
        stays = self.fleet.ward.stays
        resting = listed([c.client_id for c in able if c.client_id in stays])
        away = {*self.fleet.busy, *stays}
        able = [c for c in able if c.client_id not in away]
        size, notes = self.config.cohort_size() - len(self.fleet.busy), list[str]()
        if without and step.round_index == 0:
            what = "the task they meet" if step.own else f"task {step.task_index}"
            notes.append(f"no training examples of {what}: {listed(without)}")
        if len(able) < size:
            why = f", in quarantine: {resting}" if resting else ""
            notes.append(
                f"cohort of {len(able)} instead of {size}: no more clients here hold examples{why}"
            )
        rng = rng_for(self.config.seed, "cohort", *step.path)
        drawn = np.sort(rng.permutation(len(able))[:size])
        return tuple(able[index] for index in drawn), tuple(notes)

    def tasks_of(self, client: ClientId) -> tuple[int, ...]:
        """Whose examples a step is about: of every task the client has met, where it recalls."""
        own = self.step.tasks_of(client)
        return (*self.step.met_by(client), *own) if self.step.recalls else own

    def seen(self) -> tuple[int, ...]:
        """Tasks learnt so far: those that have come to anyone who has examples of them."""
        if not self.step.own:
            return self.step.seen
        come = {c: {*self.step.tasks_of(c), *self.step.met_by(c)} for c in self.step.own}
        clients = (*self.federation.clients, *self.federation.absent)
        return tuple(
            task
            for task in self.step.seen
            if any(c.num_train[task] and task in come[c.client_id] for c in clients)
        )

    def candidates(self) -> dict[GroupName, GroupPlan]:
        """Everything that could be trained, as a probe looks at it."""
        rank, plans = self.config.rank_allocator().max_rank, dict[GroupName, GroupPlan]()
        for spec in self.federation.model.groups:
            if spec.kind == "linear" and spec.linear:
                plans[spec.name] = LowRank(rank=min(rank, *spec.linear)) if rank else Dense()
            elif spec.kind == "head":
                plans[spec.name] = Dense()
        return plans

    def group_plans(
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

    def order(
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
            assignment_id=f"{self.run_id}/{index:05d}/{client}{step.suffix}",
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

    def plan(self, orders: list[Order], view: RoundView, notes: tuple[str, ...] = ()) -> Plan:
        return Plan(
            step_index=self.state.step_index,
            step=self.step,
            orders=tuple(orders),
            view=view,
            notes=notes,
        )


def _spectra(tensors: Tensors) -> dict[GroupName, Array]:
    groups = dict.fromkeys(key.group for key in tensors if key.part == LORA_A)
    factors = {group: factors_of(tensors, group) for group in groups}
    return {group: spectrum(pair) for group, pair in factors.items() if pair is not None}
