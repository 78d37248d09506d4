"""Figures along the steps of a run: loss, bytes, seconds, what aggregation cut, drift."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Final

from markupsafe import Markup

from orchestrator.figures.bars import Stack, bars
from orchestrator.figures.frame import Band, Frame
from orchestrator.figures.heat import heat_map
from orchestrator.figures.heat_words import HeatMap
from orchestrator.figures.inputs import StepMark, StepTotals
from orchestrator.figures.lines import Line, lines
from orchestrator.figures.naming import in_model_order, told_apart
from orchestrator.store.drift import DriftTable

_SUMS: Final = ("total", "compute", "simulated")  # of the other phases, or of another clock
_KINDS: Final[Mapping[str, str]] = {  # in the order in which they are stacked
    "train": "training",
    "replay": "replay",
    "evaluate": "scoring",
    "probe": "probes",
    "head": "sums of a head",
}


def loss_curve(steps: Sequence[StepTotals]) -> Markup:
    """Training loss by step."""
    line = [(float(r["step"]), r["loss"]) for r in steps if r["loss"] is not None]
    return lines(
        [Line(name="training loss", points=line)], _by_step(steps, "Training loss by step")
    )


def truncation_curve(steps: Sequence[StepTotals]) -> Markup:
    """The largest relative error that re-factoring left in a group, by step; empty if none did."""
    found = [(float(r["step"]), r["truncation_max"]) for r in steps]
    line = [(step, value) for step, value in found if value is not None]
    if not any(value > 1e-6 for _, value in line):
        return Markup("")
    label = "Relative error of truncation by step, largest over groups"
    return lines([Line(name="truncation", points=line)], _by_step(steps, label))


def traffic_bars(steps: Sequence[StepTotals]) -> Markup:
    """Megabytes by step, up and down, each by the kind of step that sent them."""
    kinds = [kind for kind in _KINDS if any(step["kind"] == kind for step in steps)]
    stacks = [
        Stack(
            name=f"{direction}, {_KINDS[kind]}",
            values=[_megabytes(step, direction) if step["kind"] == kind else 0.0 for step in steps],
            unit="MB",
        )
        for direction in ("up", "down")
        for kind in kinds
    ]
    label = "Megabytes sent by step, over all clients"
    return bars([s for s in stacks if any(s.values)], _by_step(steps, label, "MB"))


def server_time_bars(steps: Sequence[StepTotals]) -> Markup:
    """The server's seconds by phase and step."""
    label = "Seconds of the server by step and phase"
    return phase_bars([r["seconds"] for r in steps], _marks(steps), label)


def client_time_bars(steps: Sequence[StepTotals]) -> Markup:
    """The clients' own seconds by phase and step, summed."""
    label = "Seconds of all clients together by step and phase"
    return phase_bars([r["client_seconds"] for r in steps], _marks(steps), label)


def phase_bars(
    seconds: Sequence[Mapping[str, float | None]], marks: Sequence[StepMark], label: str
) -> Markup:
    """Seconds by phase, a bar for each of ``marks``."""
    return bars(_phase_stacks(seconds), _frame(marks, label, "s"))


def bytes_bars(sent: Sequence[tuple[int, int]], marks: Sequence[StepMark]) -> Markup:
    """Megabytes up and down of one client, a bar for each of ``marks``."""
    stacks = [
        Stack(name=name, values=[both[place] / 1e6 for both in sent], unit="MB")
        for place, name in enumerate(("up", "down"))
    ]
    return bars(stacks, _frame(marks, "Megabytes of the client by step", "MB"))


def drift_map(drift: DriftTable) -> Markup:
    """How far each part of the model moved in each step that trained; empty if unknown."""
    groups = in_model_order(drift.groups)
    short, columns = told_apart(groups), [drift.groups.index(group) for group in groups]
    return heat_map(
        HeatMap(
            label="Drift of every part of the model by round",
            x_label="rounds that trained",
            row_label="part of the model",
            rows=[short[group] for group in groups],
            cells=drift.values.T[columns],
            write=lambda value: f"{value:.1g}",
            bands=task_bands(drift.tasks, range(len(drift.tasks))),
        )
    )


def task_bands(tasks: Sequence[int], places: Sequence[int]) -> list[Band]:
    """The stretch of ``places`` that belongs to each task; the untrained model's has no name."""
    bands = list[Band]()
    for task, group in groupby(zip(tasks, places, strict=True), key=itemgetter(0)):
        held = [place for _, place in group]
        if task >= 0:
            bands.append(Band(held[0] - 0.5, held[-1] + 0.5, str(task + 1)))
    return bands


def _by_step(steps: Sequence[StepTotals], label: str, y_label: str = "") -> Frame:
    return _frame(_marks(steps), label, y_label)


def _marks(steps: Sequence[StepTotals]) -> list[StepMark]:
    return [StepMark(step["step"], step["kind"], step["task"]) for step in steps]


def _frame(marks: Sequence[StepMark], label: str, y_label: str = "") -> Frame:
    return Frame(
        label=label,
        x_label="step",
        y_label=y_label,
        whole_x=True,
        bands=task_bands([mark.task for mark in marks], [mark.step for mark in marks]),
        marks=[mark.step for mark in marks if mark.kind == "replay"],
        mark_name="replay round",
    )


def _megabytes(step: StepTotals, direction: str) -> float:
    return (step["bytes_up"] if direction == "up" else step["bytes_down"]) / 1e6


def _phase_stacks(seconds: Sequence[Mapping[str, float | None]]) -> list[Stack]:
    phases = [p for p in dict.fromkeys(p for each in seconds for p in each) if p not in _SUMS]
    return [
        Stack(name=phase, values=[each.get(phase) or 0.0 for each in seconds], unit="s")
        for phase in phases
    ]
