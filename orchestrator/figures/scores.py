"""Curves of accuracy and forgetting, of one run and of several."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from markupsafe import Markup

from orchestrator.figures.frame import Frame
from orchestrator.figures.inputs import Scored, Traced
from orchestrator.figures.lines import Line, lines
from orchestrator.figures.thinning import Point

_AXES: Final[Mapping[str, str]] = {
    "tasks": "tasks learnt",
    "rounds": "training rounds",
    "megabytes": "MB, both ways, all clients",
    "seconds": "seconds of the server's clock",
}


def accuracy_curves(shown: Scored) -> Markup:
    """Accuracy of every task from its own row on, and the mean over the tasks learnt by then.

    Empty before two stages were scored: a curve of one point says nothing.
    """
    rows = shown["accuracy_matrix"]
    if sum(any(value is not None for value in row) for row in rows[1:]) < 2:
        return Markup("")
    series = [
        Line(name=_task_name(shown, j), points=line, mark=str(j + 1))
        for j in range(len(shown["tasks"]))
        if (
            line := [
                (float(i), v)
                for i in range(shown["learnt_at"][j], len(rows))
                if (v := rows[i][j]) is not None
            ]
        )
    ]
    mean = [(i + 1.0, v) for i, v in enumerate(shown["average_accuracy"]) if v is not None]
    if mean:
        series.append(Line(name="mean over the tasks learnt", points=mean, bold=True))
    label = "Accuracy of every task, and their mean, after each row of the matrix"
    frame = Frame(label=label, x_label=_row_unit(shown), whole_x=True, y_range=_accuracies(series))
    return lines(series, frame)


def forgetting_curves(shown: Scored) -> Markup:
    """What every earlier task has lost against its best, after each task learnt, and the mean."""
    lost = {j: line for j in range(len(shown["tasks"])) if (line := list(_lost(shown, j)))}
    series = [
        Line(name=_task_name(shown, j), points=line, mark=str(j + 1)) for j, line in lost.items()
    ]
    stages = sorted({x for line in lost.values() for x, _ in line})
    mean = [(x, _mean([y for line in lost.values() for at, y in line if at == x])) for x in stages]
    if mean:
        series.append(Line(name="mean over earlier tasks", points=mean, bold=True))
    label = "Forgetting of every earlier task, and its mean, after each row of the matrix"
    return lines(series, Frame(label=label, x_label=_row_unit(shown), whole_x=True))


def acc_over(runs: Sequence[Traced], unit: str) -> Markup:
    """Mean accuracy over the tasks learnt so far, against ``unit``, one of ``_AXES``."""
    series = [
        Line(name=run.name, points=line) for run in runs if (line := list(_acc_line(run, unit)))
    ]
    label = f"Mean accuracy over the tasks learnt, by {_AXES[unit]}"
    low = None if unit == "tasks" else 0.0
    frame = Frame(
        label=label,
        x_label=_AXES[unit],
        whole_x=unit in ("tasks", "rounds"),
        x_low=low,
        y_range=_accuracies(series),
    )
    return lines(series, frame)


def _acc_line(run: Traced, unit: str) -> Iterator[Point]:
    spent = dict.fromkeys(_AXES, 0.0)
    for step in run.steps:
        spent["megabytes"] += (step["bytes_up"] + step["bytes_down"]) / 1e6
        clock = step["seconds"]  # the simulated one, where there is one
        took = clock["simulated"] if "simulated" in clock else sum(v or 0.0 for v in clock.values())
        spent["seconds"] += took or 0.0
        spent["rounds"] += step["kind"] == "train"
        if step["kind"] != "evaluate" or not 0 <= step["task"] < run.last_row:
            continue
        spent["tasks"] = step["task"] + 1.0
        value = run.average_accuracy[step["task"]]
        if value is not None:
            yield spent[unit], value


def _accuracies(series: Sequence[Line]) -> tuple[float, float]:
    """From 0 to 1, or from the tenth below the lowest where all is in the upper half."""
    lowest = min((y for line in series for _, y in line.points), default=0.0)
    return (math.floor(10 * lowest - 0.2) / 10 if lowest > 0.5 else 0.0, 1.0)


def _row_unit(shown: Scored) -> str:
    return "tasks learnt" if shown["arrival"] == "together" else "stages"


def _task_name(shown: Scored, index: int) -> str:
    return f"{index + 1} {shown['tasks'][index]}"


def _lost(shown: Scored, task: int) -> Iterator[Point]:
    """How far below its best before, for every later stage at which the task was scored."""
    best: float | None = None
    for stage in range(shown["learnt_at"][task], len(shown["accuracy_matrix"])):
        value = shown["accuracy_matrix"][stage][task]
        if value is None:
            continue
        if best is not None:
            yield float(stage), best - value
        best = value if best is None else max(best, value)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
