"""What the pages draw, as numbers: heat maps, curves, stacks, cut to what a page holds; pure."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Final

from orchestrator.results import Overview, SummedRound
from orchestrator.store.totals import ClientTotals, StepRecord
from orchestrator.summary import row_names

MOST_COLUMNS: Final = 120  # of steps; more are put together
MOST_CLIENTS: Final = 100
_SUMS: Final = ("total", "compute", "simulated")  # of other phases, or of another clock
Point = tuple[float, float]
Cell = float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class HeatMap:
    """``cells[i][j]`` of row i and column j between ``low`` and ``high``; None is nothing there.

    ``marked`` are the cells (row, column) that stand out.  ``hidden`` columns did not fit.
    """

    name: str
    label: str
    row_label: str
    column_label: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: tuple[tuple[Cell, ...], ...]
    low: float
    high: float
    unit: str = ""
    marked: tuple[tuple[int, int], ...] = ()
    hidden: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """A line through ``points``; a ``bold`` one is of the whole."""

    name: str
    points: tuple[Point, ...]
    bold: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """The stretch of steps that belongs to a task, or a replay round."""

    start: float
    end: float
    label: str
    kind: str = "task"


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """Curves over a common axis."""

    name: str
    label: str
    x_label: str
    y_label: str
    curves: tuple[Curve, ...]
    bands: tuple[Band, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One part of every bar of a stack."""

    name: str
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stacks:
    """Bars at ``x``, each of the same ``parts``."""

    name: str
    label: str
    x_label: str
    unit: str
    x: tuple[str, ...]
    parts: tuple[Part, ...]
    bands: tuple[Band, ...] = ()


def accuracy_map(shown: Overview) -> HeatMap:
    """R: a row per stage and one before, a column per task; marked where a task was learnt."""
    names, rows = ["untrained", *row_names(shown)], shown["accuracy_matrix"]
    measured = [i for i, row in enumerate(rows) if any(value is not None for value in row)]
    marks = {row: task for task, row in enumerate(shown["learnt_at"])}
    return HeatMap(
        name="accuracy",
        label="Accuracy on each task after learning each",
        row_label="after",
        column_label="task",
        rows=tuple(names[i] for i in measured),
        columns=tuple(shown["tasks"]),
        cells=tuple(tuple(rows[i]) for i in measured),
        low=0.0,
        high=1.0,
        marked=tuple((place, marks[i]) for place, i in enumerate(measured) if i in marks),
    )


def accuracy_curves(shown: Overview) -> Chart:
    """Accuracy of every task from its own row on, and the mean over those learnt by then."""
    rows = shown["accuracy_matrix"]
    curves = [
        Curve(name=name, points=tuple(_column(rows, task, shown["learnt_at"][task])))
        for task, name in enumerate(shown["tasks"])
    ]
    mean = tuple((i + 1.0, v) for i, v in enumerate(shown["average_accuracy"]) if v is not None)
    curves.append(Curve(name="mean over the tasks learnt", points=mean, bold=True))
    return _chart("accuracy-curves", "Accuracy of every task", _rows_of(shown), "accuracy", curves)


def forgetting_curves(shown: Overview) -> Chart:
    """What every earlier task has lost against its best before, after each row; and the mean."""
    rows, curves = shown["accuracy_matrix"], list[Curve]()
    for task, name in enumerate(shown["tasks"]):
        points, best = list[Point](), None
        for x, value in _column(rows, task, shown["learnt_at"][task]):
            if best is not None:
                points.append((x, best - value))
            best = value if best is None else max(best, value)
        curves.append(Curve(name=name, points=tuple(points)))
    lost = sorted({x for curve in curves for x, _ in curve.points})
    at = {x: [y for c in curves for where, y in c.points if where == x] for x in lost}
    mean = tuple((x, sum(ys) / len(ys)) for x, ys in at.items())
    curves.append(Curve(name="mean over earlier tasks", points=mean, bold=True))
    return _chart("forgetting-curves", "Forgetting", _rows_of(shown), "lost accuracy", curves)


def loss_curve(rounds: Sequence[SummedRound]) -> Chart:
    """Training loss by step."""
    points = tuple((float(r["step"]), r["loss"]) for r in rounds if r["loss"] is not None)
    curve = Curve(name="training loss", points=points, bold=True)
    bands = tuple(bands_of(rounds))
    return _chart("loss", "Training loss by step", "step", "loss", [curve], bands)


def drift_map(rounds: Sequence[SummedRound]) -> HeatMap:
    """How far each group moved in each training round; means where rounds are put together."""
    bins = binned([r for r in rounds if r["drift"]])
    groups = sorted({g for some in bins for r in some for g in r["drift"]}, key=natural)
    cells = tuple(
        tuple(_mean([r["drift"][group] for r in some if group in r["drift"]]) for some in bins)
        for group in groups
    )
    return HeatMap(
        name="drift",
        label="How far local training moved each group, by step",
        row_label="group",
        column_label="step",
        rows=tuple(groups),
        columns=tuple(_named(some) for some in bins),
        cells=cells,
        low=0.0,
        high=_highest(cells),
    )


def rank_map_by_round(steps: Sequence[StepRecord]) -> HeatMap:
    """Which share of what was trained in a round was trained at each rank; 0 is dense."""
    trained = [step for step in steps if step.totals.ranks]
    bins = [trained[i : i + _width(len(trained))] for i in _starts(len(trained))]
    ranks = sorted({rank for step in trained for rank in step.totals.ranks}, reverse=True)
    cells = tuple(tuple(_share(some, rank) for some in bins) for rank in ranks)
    first = [str(some[0].record.step_index) for some in bins]
    last = [str(some[-1].record.step_index) for some in bins]
    return HeatMap(
        name="ranks-by-round",
        label="Share of groups trained at each rank, by step",
        row_label="rank",
        column_label="step",
        rows=tuple("dense" if rank == 0 else str(rank) for rank in ranks),
        columns=tuple(a if a == b else f"{a}–{b}" for a, b in zip(first, last, strict=True)),
        cells=cells,
        low=0.0,
        high=1.0,
    )


def rank_map_by_client(clients: Sequence[ClientTotals]) -> HeatMap:
    """The rank of every group on every client in the last round it trained in; 0 is dense."""
    kept = [client for client in clients if client.last_ranks]
    return _by_client(
        kept,
        name="ranks-by-client",
        label="Rank of each group on each client, in its last round",
        value=lambda client, group: client.last_ranks.get(group),
    )


def choice_map_by_client(clients: Sequence[ClientTotals]) -> HeatMap:
    """In which share of its rounds a client trained each group."""
    kept = [client for client in clients if client.groups and client.rounds]
    return _by_client(
        kept,
        name="choice-by-client",
        label="Share of its rounds in which each client trained each group",
        value=lambda client, group: client.groups.get(group, 0) / client.rounds,
    )


def traffic(rounds: Sequence[SummedRound]) -> Stacks:
    """Bytes both ways by step."""
    bins = binned(rounds)
    parts = [
        Part(name="up", values=tuple(float(sum(r["bytes_up"] for r in some)) for some in bins)),
        Part(name="down", values=tuple(float(sum(r["bytes_down"] for r in some)) for some in bins)),
    ]
    return _stacks("bytes", "Bytes sent by step, over all clients", "bytes", rounds, parts)


def server_seconds(rounds: Sequence[SummedRound]) -> Stacks:
    """The server's seconds by phase and step."""
    parts = _phases(rounds, lambda r: r["seconds"])
    label = "Seconds of the server by step and phase"
    return _stacks("server-seconds", label, "seconds", rounds, parts)


def client_seconds(rounds: Sequence[SummedRound]) -> Stacks:
    """The clients' seconds by phase and step, summed."""
    parts = _phases(rounds, lambda r: r["client_seconds"])
    label = "Seconds of all clients together by step and phase"
    return _stacks("client-seconds", label, "seconds", rounds, parts)


def acc_over(
    runs: Sequence[tuple[Overview, Sequence[SummedRound]]], unit: str, label: str
) -> Chart:
    """Mean accuracy over the tasks learnt, against ``unit``: tasks, rounds, bytes or seconds."""
    curves = [
        Curve(
            name=f"{shown['name']} ({shown['run_id'][-4:]})",
            points=tuple(_acc_line(shown, rounds, unit)),
        )
        for shown, rounds in runs
    ]
    return _chart(f"acc-over-{unit}", f"Mean accuracy by {label}", label, "accuracy", curves)


def bands_of(rounds: Sequence[SummedRound]) -> Iterator[Band]:
    """The stretch of steps of each task, and every replay round."""
    for task, group in groupby(rounds, key=lambda r: r["task"]):
        steps = [r["step"] for r in group]
        if task >= 0:
            yield Band(start=steps[0] - 0.5, end=steps[-1] + 0.5, label=str(task + 1))
    for r in rounds:
        if r["kind"] == "replay":
            yield Band(start=r["step"] - 0.5, end=r["step"] + 0.5, label="replay", kind="replay")


def binned(rounds: Sequence[SummedRound]) -> list[Sequence[SummedRound]]:
    """Consecutive steps put together, so that there are at most ``MOST_COLUMNS``."""
    width = _width(len(rounds))
    return [rounds[start : start + width] for start in _starts(len(rounds))]


def natural(name: str) -> tuple[Any, ...]:
    """Sorts ``layer.10`` after ``layer.9``."""
    return tuple(int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name))


def _by_client(
    clients: Sequence[ClientTotals],
    *,
    name: str,
    label: str,
    value: Callable[[ClientTotals, str], Cell],
) -> HeatMap:
    kept = clients[:MOST_CLIENTS]
    groups = sorted({group for client in kept for group in client.groups}, key=natural)
    cells = tuple(tuple(value(client, group) for client in kept) for group in groups)
    return HeatMap(
        name=name,
        label=label,
        row_label="group",
        column_label="client",
        rows=tuple(groups),
        columns=tuple(client.client_id for client in kept),
        cells=cells,
        low=0.0,
        high=_highest(cells),
        hidden=len(clients) - len(kept),
    )


def _acc_line(shown: Overview, rounds: Sequence[SummedRound], unit: str) -> Iterator[Point]:
    spent = dict.fromkeys(("tasks", "rounds", "bytes", "seconds"), 0.0)
    for r in rounds:
        spent["bytes"] += r["bytes_up"] + r["bytes_down"]
        clock = r["seconds"]  # the simulated one, where there is one
        took = clock["simulated"] if "simulated" in clock else sum(v or 0.0 for v in clock.values())
        spent["seconds"] += took or 0.0
        spent["rounds"] += r["kind"] == "train"
        if r["kind"] != "evaluate" or not 0 <= r["task"] < shown["last_row"]:
            continue
        spent["tasks"] = r["task"] + 1.0
        value = shown["average_accuracy"][r["task"]]
        if value is not None:
            yield spent[unit], value


def _phases(
    rounds: Sequence[SummedRound], of: Callable[[SummedRound], Mapping[str, float | None]]
) -> list[Part]:
    names = [n for n in dict.fromkeys(n for r in rounds for n in of(r)) if n not in _SUMS]
    bins = binned(rounds)
    return [
        Part(
            name=name,
            values=tuple(sum(of(r).get(name) or 0.0 for r in some) for some in bins),
        )
        for name in names
    ]


def _stacks(
    name: str, label: str, unit: str, rounds: Sequence[SummedRound], parts: Sequence[Part]
) -> Stacks:
    return Stacks(
        name=name,
        label=label,
        x_label="step",
        unit=unit,
        x=tuple(_named(some) for some in binned(rounds)),
        parts=tuple(parts),
        bands=tuple(bands_of(rounds)),
    )


def _chart(
    name: str,
    label: str,
    x_label: str,
    y_label: str,
    curves: Sequence[Curve],
    bands: tuple[Band, ...] = (),
) -> Chart:
    drawn = tuple(curve for curve in curves if curve.points)
    return Chart(
        name=name, label=label, x_label=x_label, y_label=y_label, curves=drawn, bands=bands
    )


def _column(rows: Sequence[Sequence[Cell]], task: int, start: int) -> Iterator[Point]:
    for i in range(start, len(rows)):
        value = rows[i][task]
        if value is not None:
            yield float(i), value


def _rows_of(shown: Overview) -> str:
    return "tasks learnt" if shown["arrival"] == "together" else "stages"


def _share(steps: Sequence[StepRecord], rank: int) -> float:
    total = sum(count for step in steps for count in step.totals.ranks.values())
    return sum(step.totals.ranks.get(rank, 0) for step in steps) / total


def _named(rounds: Sequence[SummedRound]) -> str:
    first, last = rounds[0]["step"], rounds[-1]["step"]
    return str(first) if first == last else f"{first}–{last}"


def _mean(values: Sequence[float | None]) -> Cell:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _highest(cells: Sequence[Sequence[Cell]]) -> float:
    return max((value for row in cells for value in row if value is not None), default=0.0)


def _width(count: int) -> int:
    return max(1, math.ceil(count / MOST_COLUMNS))


def _starts(count: int) -> range:
    return range(0, count, _width(count))
