"""What the numbers say, in a paragraph."""

from __future__ import annotations

from orchestrator.report.tables import scored_only_at_the_end
from orchestrator.report.writing import duration, size
from orchestrator.results import Show
from orchestrator.summary import stage_names

_NEGLIGIBLE = 0.005


def in_words(shown: Show) -> list[str]:
    """A few sentences: what was learnt, what was forgotten, what it cost, what went wrong."""
    parts = (
        _learnt(shown),
        _when_new(shown),
        _forgotten(shown),
        _withheld(shown),
        _cost(shown),
        _trouble(shown),
    )
    return [sentence for sentence in parts if sentence]


def _learnt(shown: Show) -> str:
    if shown["acc"] is None:
        return "No task has been scored yet."
    learnt, total = shown["tasks_learnt"], len(shown["tasks"])
    untrained = zip(shown["accuracy_matrix"][0], shown["learnt_at"], strict=True)
    before = [v for v, row in untrained if v is not None and row <= shown["last_row"]]
    start = f"; before training it was {sum(before) / len(before):.1%}" if before else ""
    return (
        f"After {learnt} of {_count(total, 'task')}, the model answers {shown['acc']:.1%} of the "
        f"held-out examples right, averaged over the tasks it has learnt{start}."
    )


def _when_new(shown: Show) -> str:
    if shown["tasks_learnt"] < 2 or shown["acc"] is None:
        return ""
    if scored_only_at_the_end(shown):
        return "The tasks were scored only at the end, so there is no forgetting to speak of."
    if shown["learning_accuracy"] is None:
        return ""
    return f"Just after learning a task it answered {shown['learning_accuracy']:.1%} of that task."


def _forgotten(shown: Show) -> str:
    lost = shown["forgetting_per_task"]
    known = [(value, -index) for index, value in enumerate(lost) if value is not None]
    if not known or shown["forgetting"] is None:
        return ""
    worst, position = max(known)
    task, final = -position, shown["accuracy_matrix"][shown["last_row"]][-position] or 0.0
    if worst <= _NEGLIGIBLE:
        return "Nothing learnt before was lost."
    return (
        f"Measured from its best, an earlier task has lost {shown['forgetting']:.1%} of its "
        f"held-out examples on average; “{shown['tasks'][task]}” has lost most, {worst:.1%} "
        f"(from {final + worst:.1%} to {final:.1%})."
    )


def _withheld(shown: Show) -> str:
    stages = stage_names(shown)
    names = [f"“{stages[r['task']]}”" for r in shown["releases"] if not r["published"]]
    if not names:
        return ""
    kept = [stages[r["task"]] for r in shown["releases"] if r["published"]]
    instead = f"is still the one after “{kept[-1]}”" if kept else "does not exist yet"
    if shown["releases"][-1]["published"]:
        instead = f"is the one after “{kept[-1]}”"
    states = "The state after" if len(names) == 1 else "The states after"
    was = "was" if len(names) == 1 else "were"
    return f"{states} {', '.join(names)} {was} not published; the adapter {instead}."


def _cost(shown: Show) -> str:
    training = sum(record["kind"] == "train" for record in shown["rounds"])
    if not training:
        return ""
    spent = shown["duration_seconds"]
    lasted = f", {duration(spent)}" if spent is not None else ""
    return (
        f"That took {_count(training, 'training round')}{lasted}, {size(shown['bytes_up'])} up and "
        f"{size(shown['bytes_down'])} down over all clients."
    )


def _trouble(shown: Show) -> str:
    failed = [client for client in shown["clients"] if client["failures"]]
    total = sum(client["failures"] for client in failed)
    if not total:
        return ""
    names = ", ".join(client["client_id"] for client in failed[:5])
    more = f" and {len(failed) - 5} more" if len(failed) > 5 else ""
    reasons = ", ".join(sorted({r for client in failed for r in client["failure_reasons"]}))
    return f"{_count(total, 'answer')} did not count ({reasons}), from {names}{more}."


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
