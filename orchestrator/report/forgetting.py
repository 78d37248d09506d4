"""Forgetting in sentences, for the page and for the command line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from orchestrator.report.writing import duration
from orchestrator.results import Overview, Show, SummedRound
from orchestrator.summary import stage_names

_TASKS: Final = 3  # that have lost most are told one by one
_NEGLIGIBLE: Final = 0.005


def explain(shown: Show) -> list[str]:
    """What was lost, when, on whom and where, and what replay cost; nothing where it is unknown."""
    return explain_summed(shown, shown["rounds"])


def explain_summed(shown: Overview, rounds: Sequence[SummedRound]) -> list[str]:
    """The same, of a run by its sums."""
    found = [_tasks(shown), [_clients(shown), _groups(shown)]]
    found.append([_intruders(shown, rounds), _replay(shown)])
    return [sentence for part in found for sentence in part if sentence]


def points(value: float) -> str:
    """A difference of accuracies in percentage points."""
    return f"{100 * value:.1f} points"


def _learning(shown: Overview, stage: int) -> str:
    """What happened in a stage: a task was learnt or, where clients meet tasks apart, several."""
    name = stage_names(shown)[stage]
    return f"learning “{name}”" if shown["arrival"] == "together" else name


def _tasks(shown: Overview) -> list[str]:
    names, found = shown["tasks"], shown["forgetting_explained"]["tasks"]
    told = list[str]()
    for task in [task for task in found if task["lost"] > _NEGLIGIBLE][:_TASKS]:
        sentence = (
            f"“{names[task['task']]}” lost {points(task['lost'])}: at its best, after "
            f"{_learning(shown, task['best_after'])}, {task['best']:.1%} of its held-out examples "
            f"were answered right, now {task['final']:.1%}"
        )
        if task["costliest"] is not None and task["costliest_drop"] is not None:
            drop = points(task["costliest_drop"])
            costliest = _learning(shown, task["costliest"])
            sentence += f". {costliest[0].upper()}{costliest[1:]} cost it most, {drop}"
        told.append(f"{sentence}.")
    return told


def _clients(shown: Overview) -> str:
    found, spread = shown["forgetting_explained"]["clients"], shown["forgetting_over_clients"]
    if not found or found[0]["forgetting"] <= _NEGLIGIBLE or spread["mean"] is None:
        return ""
    worst = found[0]
    decile = points(spread["worst_decile"] or 0.0)
    return (
        f"On their own examples, clients forgot {points(spread['mean'])} on average, the worst "
        f"tenth of them {decile}. {worst['client_id']} forgot most, {points(worst['forgetting'])}, "
        f"and of its tasks “{shown['tasks'][worst['task']]}” most, {points(worst['task_lost'])}."
    )


def _groups(shown: Overview) -> str:
    groups = shown["forgetting_explained"]["groups"]
    if not groups:
        return ""
    first = groups[0]
    others = ", ".join(each["group"] for each in groups[1:3])
    follow = f", followed by {others}" if others else ""
    return (
        f"Of the parts of the model, {first['group']} moved most in a round of local training (its "
        f"values by {first['drift']:.2g}, root mean square){follow}. It moved furthest "
        f"{'while' if shown['arrival'] == 'together' else 'in'} {_learning(shown, first['task'])}."
    )


def _intruders(shown: Overview, rounds: Sequence[SummedRound]) -> str:
    counted = [
        f"{record['intruders']:.0f} after “{shown['tasks'][record['task']]}”"
        for record in rounds
        if record["intruders"] is not None
    ]
    if not counted:
        return ""
    return (
        "Intruder dimensions, leading directions of the tuned weights that are like none of the "
        f"base model’s and tend to grow with forgetting: {', '.join(counted)}."
    )


def _replay(shown: Overview) -> str:
    replay = shown["forgetting_explained"]["replay"]
    if replay["share"] is None or replay["seconds"] is None:
        return ""
    if not replay["num_replayed"]:
        return "Nothing was replayed: no training step looked at an example of an earlier task."
    return (
        f"Of {replay['num_trained']} examples that steps were taken on, {replay['num_replayed']} "
        f"({replay['share']:.1%}) were replayed from the clients’ memories; that is about "
        f"{duration(replay['seconds'])} of their training time."
    )
