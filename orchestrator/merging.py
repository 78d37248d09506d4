"""What the merger makes of a state: at a task's start and end, and after every training round."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from orchestrator.config import RunConfig
from orchestrator.federation import Federation
from orchestrator.outgoing import changes
from orchestrator.plans import MERGING, Plan
from orchestrator.schedule import schedule
from strategies.protocols import AfterRound, Merged, MergeView, Moves, Question, Refining, TaskStart
from strategies.types import Evidence, GlobalState, GroupName


def opened(state: GlobalState, config: RunConfig, federation: Federation) -> GlobalState:
    """The state the next step is planned from: another one where a merger starts its tasks anew."""
    merger, index = config.merger(), state.step_index
    if not isinstance(merger, TaskStart) or not index:
        return state
    last, *rest = schedule(config, len(federation.tasks))[index - 1 : index + 1]
    if last.kind != "evaluate" or last.task_index < 0 or not rest:
        return state
    tensors = merger.task_start(state.tensors)
    changed = {**state.changed, **changes(state.tensors, tensors, index)}
    return replace(state, tensors=tensors, changed=changed)


def settled(
    before: GlobalState,
    after: GlobalState,
    plan: Plan,
    moves: Mapping[GroupName, Moves],
    config: RunConfig,
) -> tuple[GlobalState, dict[GroupName, float]]:
    """The state to go on with, and per group the relative error of what the merger cut.

    ``before`` is the state the step was planned from, ``after`` the one its replies gave.
    """
    merger, step, truncation = config.merger(), plan.step, dict[GroupName, float]()
    view = MergeView(
        groups=plan.view.groups,
        task_index=step.task_index,
        seed=config.seed,
        evidence=after.evidence,
        moves=moves,
    )
    merged = Merged(tensors=after.tensors, state=after.memories.get(MERGING, {}))
    if step.kind == "train" and isinstance(merger, AfterRound):
        merged = merger.after_round(view, before.tensors, merged.tensors, merged.state)
        truncation |= merged.truncation
    evidence = after.evidence
    if step.closes:
        merged = merger.task_end(view, merged.tensors, merged.state)
        for group, error in merged.truncation.items():
            truncation[group] = truncation.get(group, 0.0) + error
    if step.refines and isinstance(merger, Refining):
        merged = merger.refine(view, merged.tensors, merged.state)
    if step.closes or step.refines:
        evidence = _spent(step.question, evidence)
    memories = {**after.memories, MERGING: merged.state}
    return replace(
        after,
        tensors=merged.tensors,
        memories={kind: memory for kind, memory in memories.items() if memory},
        evidence=evidence,
    ), truncation


def _spent(question: Question | None, evidence: Evidence) -> Evidence:
    """The evidence less what the merger asked for: it has served, and sketches are large."""
    if question is None:
        return evidence
    return {
        client: {key: v for key, v in found.items() if key.part not in question.statistics}
        for client, found in evidence.items()
    }
