"""The charts of the pages, from the documents that the command line prints."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Final

from markupsafe import Markup

from orchestrator.report.svg import Band, Frame, Line, Point, Stack, bars, lines
from orchestrator.results import Show, ShownRound

_SUMS: Final = ("total", "compute", "simulated")  # of the other phases, or of another clock
_AXES: Final[Mapping[str, str]] = {
    "tasks": "tasks learnt",
    "rounds": "training rounds",
    "megabytes": "MB, both ways, all clients",
    "seconds": "seconds of the server's clock",
}


def accuracy_curves(shown: Show) -> Markup:
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


def forgetting_curves(shown: Show) -> Markup:
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


def loss_curve(shown: Show) -> Markup:
    """Training loss by step."""
    line = [(float(r["step"]), r["loss"]) for r in shown["rounds"] if r["loss"] is not None]
    series = [Line(name="training loss", points=line)]
    return lines(series, _by_step(shown, "Training loss by step", ""))


def truncation_curve(shown: Show) -> Markup:
    """The largest relative error that re-factoring left in a group, by step; empty if none did."""
    found = [(float(r["step"]), r["truncation_max"]) for r in shown["rounds"]]
    line = [(step, value) for step, value in found if value is not None]
    if not any(value > 1e-6 for _, value in line):
        return Markup("")
    label = "Relative error of truncation by step, largest over groups"
    return lines([Line(name="truncation", points=line)], _by_step(shown, label, ""))


def traffic_bars(shown: Show) -> Markup:
    """Megabytes both ways by step."""
    rounds = shown["rounds"]
    stacks = [
        Stack(name="up", values=[r["bytes_up"] / 1e6 for r in rounds], unit="MB"),
        Stack(name="down", values=[r["bytes_down"] / 1e6 for r in rounds], unit="MB"),
    ]
    return bars(stacks, _by_step(shown, "Megabytes sent by step, over all clients", "MB"))


def server_time_bars(shown: Show) -> Markup:
    """The server's seconds by phase and step."""
    stacks = _phase_stacks([r["seconds"] for r in shown["rounds"]])
    return bars(stacks, _by_step(shown, "Seconds of the server by step and phase", "s"))


def client_time_bars(shown: Show) -> Markup:
    """The clients' own seconds by phase and step, summed."""
    stacks = _phase_stacks([r["client_seconds"] for r in shown["rounds"]])
    label = "Seconds of all clients together by step and phase"
    return bars(stacks, _by_step(shown, label, "s"))


def acc_over(shows: Sequence[Show], unit: str) -> Markup:
    """Mean accuracy over the tasks learnt so far, against ``unit``, one of ``_AXES``."""
    series = [
        Line(name=f"{shown['name']} ({shown['run_id'][-4:]})", points=line)
        for shown in shows
        if (line := list(_acc_line(shown, unit)))
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


def _acc_line(shown: Show, unit: str) -> Iterator[Point]:
    spent = dict.fromkeys(_AXES, 0.0)
    for record in shown["rounds"]:
        spent["megabytes"] += (record["bytes_up"] + record["bytes_down"]) / 1e6
        clock = record["seconds"]  # the simulated one, where there is one
        took = clock["simulated"] if "simulated" in clock else sum(v or 0.0 for v in clock.values())
        spent["seconds"] += took or 0.0
        spent["rounds"] += record["kind"] == "train"
        if record["kind"] != "evaluate" or not 0 <= record["task"] < shown["last_row"]:
            continue
        spent["tasks"] = record["task"] + 1.0
        value = shown["average_accuracy"][record["task"]]
        if value is not None:
            yield spent[unit], value


def _accuracies(series: Sequence[Line]) -> tuple[float, float]:
    """From 0 to 1, or from the tenth below the lowest where all is in the upper half."""
    lowest = min((y for line in series for _, y in line.points), default=0.0)
    return (math.floor(10 * lowest - 0.2) / 10 if lowest > 0.5 else 0.0, 1.0)


def _row_unit(shown: Show) -> str:
    return "tasks learnt" if shown["arrival"] == "together" else "stages"


def _task_name(shown: Show, index: int) -> str:
    return f"{index + 1} {shown['tasks'][index]}"


def _lost(shown: Show, task: int) -> Iterator[Point]:
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


def _phase_stacks(seconds: Sequence[Mapping[str, float | None]]) -> list[Stack]:
    phases = [p for p in dict.fromkeys(p for each in seconds for p in each) if p not in _SUMS]
    return [
        Stack(name=phase, values=[each.get(phase) or 0.0 for each in seconds], unit="s")
        for phase in phases
    ]


def _by_step(shown: Show, label: str, y_label: str) -> Frame:
    bands = tuple(_task_bands(shown["rounds"]))
    return Frame(label=label, x_label="step", y_label=y_label, whole_x=True, bands=bands)


def _task_bands(rounds: Sequence[ShownRound]) -> Iterator[Band]:
    """The stretch of steps that belongs to each task; the untrained model's has no name."""
    for task, group in groupby(rounds, key=lambda record: record["task"]):
        steps = [record["step"] for record in group]
        if task >= 0:
            yield Band(steps[0] - 0.5, steps[-1] + 0.5, str(task + 1))
