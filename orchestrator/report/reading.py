"""What the numbers say, in a paragraph."""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]


def in_words(shown: Json) -> list[str]:
    """A few sentences: what was learnt, what was forgotten, what it cost, what went wrong."""
    return [s for s in (_learnt(shown), _forgotten(shown), _cost(shown), _trouble(shown)) if s]


def _learnt(shown: Json) -> str:
    if shown["acc"] is None:
        return "No task has been scored yet."
    rows = [row for row in shown["accuracy_matrix"][1:] if any(v is not None for v in row)]
    return (
        f"After {len(rows)} scored stage{'s' if len(rows) != 1 else ''} of {len(shown['tasks'])} "
        f"task{'s' if len(shown['tasks']) != 1 else ''}, the model answers "
        f"{shown['acc']:.1%} of the held-out examples right, averaged over the tasks it has learnt."
    )


def _forgotten(shown: Json) -> str:
    lost = shown["forgetting_per_task"]
    known = [
        (value, shown["tasks"][index]) for index, value in enumerate(lost) if value is not None
    ]
    if not known:
        return ""
    worst, task = max(known)
    if worst <= 0.005:
        return "Nothing learnt before was lost."
    return (
        f"Earlier tasks have lost {shown['forgetting']:.1%} on average since they were known best; "
        f"“{task}” has lost most, {worst:.1%}."
    )


def _cost(shown: Json) -> str:
    up, down = shown["bytes_up"] / 1e6, shown["bytes_down"] / 1e6
    training = sum(round_["kind"] == "train" for round_ in shown["rounds"])
    traffic = f"{up:.1f} MB up and {down:.1f} MB down over all clients"
    return f"It took {training} training rounds, {traffic}."


def _trouble(shown: Json) -> str:
    failed = [client for client in shown["clients"] if client["failures"]]
    if not failed:
        return ""
    total = sum(client["failures"] for client in failed)
    names = ", ".join(client["client_id"] for client in failed[:5])
    return f"{total} answers did not count; they came from {names}."
