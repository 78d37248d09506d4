"""What strategies are told after a step, and what they make of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from orchestrator import recall
from orchestrator.config import RunConfig
from orchestrator.plans import AGGREGATION, RANK, SELECTION, Plan
from orchestrator.recall import RECALL
from strategies.protocols import Adaptive, Aggregated, Initializing, Probing, Refining
from strategies.rng import rng_for
from strategies.types import (
    Array,
    Assignment,
    ClientId,
    GlobalState,
    Observation,
    ParamKey,
    State,
    Tensors,
    Update,
)

# What every local training reports of a group: the squared length of its move, and its size.
_DRIFT: Final = ("squared", "values")


class Evidences:
    """Statistics and sketches of a reply as one mapping."""

    @staticmethod
    def of(update: Update) -> Tensors:
        """``ParamKey(group, statistic)`` → array; ``drift`` is the mean squared move of a value."""
        found: dict[ParamKey, Array] = dict(update.sketches)
        for group, values in update.statistics.items():
            if all(name in values for name in _DRIFT):
                drift = values["squared"] / max(values["values"], 1.0)
                found[ParamKey(group, "drift")] = np.array(drift)
            for name in values.keys() - set(_DRIFT):
                found[ParamKey(group, name)] = np.array(values[name])
        return found

    @staticmethod
    def unasked(update: Update, assignment: Assignment) -> str:
        """What is wrong with the evidence: of other groups or other statistics than asked for."""
        asked = set(assignment.probe.statistics if assignment.probe else ())
        asked |= set(assignment.work.reports if assignment.work else ())
        reported = [*update.sketches]
        reported += [ParamKey(g, n) for g, names in update.statistics.items() for n in names]
        for group, name in reported:
            if group not in assignment.groups:
                return f"evidence on {group}, which is not part of the plan"
            if name not in asked and name not in _DRIFT:
                return f"evidence {name!r} on {group}, expected {sorted(asked)}"
        return ""


def learnt(
    state: GlobalState,
    plan: Plan,
    aggregated: Aggregated,
    seen: Sequence[Observation],
    config: RunConfig,
) -> GlobalState:
    """The state with new tensors, newest evidence and what the strategies remember."""
    memories = {**state.memories, AGGREGATION: aggregated.state}
    tensors, evidence = aggregated.tensors, state.evidence
    if _uses_evidence(config) and plan.step.kind in ("train", "probe"):
        evidence = _newest(state, seen)
    if plan.idle:
        return replace(state, tensors=tensors, memories=_filled(memories))
    if plan.step.kind == "probe":
        tensors, evidence, started = _started(state, plan, evidence, tensors, config)
        memories |= started
    elif plan.step.kind == "train":
        memories |= _observed(state, plan, seen, config)
        if config.steers_replay():
            memories[RECALL] = recall.observed(state.memories.get(RECALL, {}), plan.step, seen)
    return replace(
        state,
        tensors=tensors,
        memories=_filled(memories),
        evidence=evidence,
    )


def _filled(memories: Mapping[str, State]) -> dict[str, State]:
    return {kind: memory for kind, memory in memories.items() if memory}


def _newest(
    state: GlobalState, seen: Sequence[Observation]
) -> dict[ClientId, Mapping[ParamKey, Array]]:
    """What each client reported last, by statistic."""
    evidence: dict[ClientId, Mapping[ParamKey, Array]] = dict(state.evidence)
    for observation in seen:
        if observation.evidence:
            client = observation.client_id
            evidence[client] = {**evidence.get(client, {}), **observation.evidence}
    return evidence


def _started(
    state: GlobalState,
    plan: Plan,
    evidence: Mapping[ClientId, Tensors],
    tensors: Tensors,
    config: RunConfig,
) -> tuple[Tensors, Mapping[ClientId, Tensors], dict[str, State]]:
    """A rank policy that sets the starting point does so after the probe it asked for."""
    allocator = config.rank_allocator()
    if not isinstance(allocator, Initializing) or RANK in state.memories:
        return tensors, evidence, {}
    view = replace(plan.view, evidence=evidence, state={})
    tensors, memory = allocator.initialize(view, tensors)
    # The sketches have served; they are as large as the adapter and stay out of the checkpoint.
    slim = {
        client: {key: value for key, value in found.items() if value.ndim < 2}
        for client, found in evidence.items()
    }
    return tensors, slim, {RANK: memory}


def _observed(
    state: GlobalState, plan: Plan, seen: Sequence[Observation], config: RunConfig
) -> dict[str, State]:
    memories = dict[str, State]()
    for kind, strategy in ((SELECTION, config.layer_selector()), (RANK, config.rank_allocator())):
        if isinstance(strategy, Adaptive):
            view = replace(plan.view, state=state.memories.get(kind, {}))
            step = plan.step
            rng = rng_for(config.seed, "observe", kind, step.task_index, step.round_index)
            memories[kind] = strategy.observe(view, seen, rng)
    return memories


def _uses_evidence(config: RunConfig) -> bool:
    """Whether any strategy reads what clients report."""
    strategies = (config.layer_selector(), config.rank_allocator(), config.merger())
    return any(isinstance(strategy, Probing | Adaptive | Refining) for strategy in strategies)
