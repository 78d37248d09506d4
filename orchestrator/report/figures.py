"""What the pages show: numbers arranged for a chart or a table, and how they are written."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from markupsafe import Markup

from orchestrator.report.svg import bars, lines

Json = dict[str, Any]


def number(value: float | None) -> str:
    """Three digits, or a dash for what was not measured."""
    return "–" if value is None else f"{value:.3f}"


def size(count: float | None) -> str:
    """Bytes for people, in powers of 1000."""
    if count is None:
        return "–"
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"


def duration(seconds: float | None) -> str:
    """Minutes and seconds."""
    if seconds is None:
        return "–"
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s"


def cell(metric: str, value: float | None) -> str:
    """A value of the comparison in its own unit."""
    if metric.startswith("bytes"):
        return size(value)
    return duration(value) if metric.endswith("seconds") else number(value)


def matrix(shown: Json) -> list[Json]:
    """Rows of the accuracy matrix with a shade per cell; rows nobody measured are left out."""
    rows = []
    for index, values in enumerate(shown["accuracy_matrix"]):
        if all(value is None for value in values):
            continue
        name = "before training" if index == 0 else shown["tasks"][index - 1]
        cells = [
            {"text": number(v), "shade": 0 if v is None else round(100 * v), "own": index == j + 1}
            for j, v in enumerate(values)
        ]
        rows.append({"name": name, "cells": cells})
    return rows


def accuracy_curves(shown: Json) -> Markup:
    """Accuracy of every task over the tasks learnt, from its own on."""
    rows, tasks = shown["accuracy_matrix"], shown["tasks"]
    series = {
        task: [(i, rows[i][j]) for i in range(j + 1, len(rows)) if rows[i][j] is not None]
        for j, task in enumerate(tasks)
    }
    return lines(
        {name: line for name, line in series.items() if line},
        label="Accuracy of every task after each task learnt",
        x_label="tasks learnt",
        y_range=(0.0, 1.0),
    )


def loss_curve(shown: Json) -> Markup:
    """Training loss by step."""
    line = [(r["step"], r["loss"]) for r in shown["rounds"] if r["loss"] is not None]
    return lines(
        {"training loss": line} if line else {}, label="Training loss by step", x_label="step"
    )


def traffic_bars(shown: Json) -> Markup:
    """Megabytes both ways by step."""
    return bars(
        {
            "up (MB)": [r["bytes_up"] / 1e6 for r in shown["rounds"]],
            "down (MB)": [r["bytes_down"] / 1e6 for r in shown["rounds"]],
        },
        label="Megabytes sent by step, over all clients",
        x_label="step",
    )


def time_bars(shown: Json) -> Markup:
    """The server's seconds by phase and step; ``exchange`` is waiting while clients work."""
    phases = dict.fromkeys(phase for r in shown["rounds"] for phase in r["seconds"])
    stacks = {p: [r["seconds"].get(p, 0.0) for r in shown["rounds"]] for p in phases}
    return bars(stacks, label="Seconds by step and phase", x_label="step")


def rank_map(shown: Json) -> Json:
    """Rank of every group on every client in its last round; 0 is dense, absent is frozen."""
    clients = [client for client in shown["clients"] if client["ranks"]]
    groups = sorted({group for client in clients for group in client["ranks"]}, key=_block_order)
    top = max((rank for c in clients for rank in c["ranks"].values()), default=0) or 1
    rows = [
        {
            "group": group,
            "cells": [_rank_cell(client["ranks"].get(group), top) for client in clients],
        }
        for group in groups
    ]
    return {"clients": [client["client_id"] for client in clients], "rows": rows}


def _rank_cell(rank: int | None, top: int) -> Json:
    if rank is None:
        return {"text": "", "shade": 0}
    return {"text": str(rank) if rank else "dense", "shade": round(100 * rank / top)}


def _block_order(group: str) -> tuple[Any, ...]:
    """Numbers in names compare as numbers, so that block 10 follows block 9."""
    return tuple(
        (0, int(part), "") if part.isdigit() else (1, 0, part) for part in group.split(".")
    )


def settings(config: Any, prefix: str = "") -> Iterable[tuple[str, str]]:
    """The run file as dotted keys."""
    if not isinstance(config, dict):
        yield prefix, str(config)
        return
    for key, value in config.items():
        yield from settings(value, f"{prefix}.{key}" if prefix else key)


def acc_over(shows: Sequence[Json], unit: str) -> Markup:
    """Mean accuracy over the tasks learnt so far, against tasks, megabytes or seconds."""
    labels = {"tasks": "tasks learnt", "bytes": "MB, both ways", "seconds": "seconds"}
    return lines(
        {f"{s['name']} {s['run_id'][-4:]}": line for s in shows if (line := _acc_line(s, unit))},
        label=f"Mean accuracy over the tasks learnt, by {labels[unit]}",
        x_label=labels[unit],
        y_range=(0.0, 1.0),
    )


def _acc_line(shown: Json, unit: str) -> list[tuple[float, float]]:
    line, spent = list[tuple[float, float]](), {"tasks": 0.0, "bytes": 0.0, "seconds": 0.0}
    for record in shown["rounds"]:
        spent["bytes"] += (record["bytes_up"] + record["bytes_down"]) / 1e6
        spent["seconds"] += sum(record["seconds"].values())
        if record["kind"] != "evaluate" or record["task"] < 0:
            continue
        spent["tasks"] = float(record["task"] + 1)
        learnt = [
            v
            for v in shown["accuracy_matrix"][record["task"] + 1][: record["task"] + 1]
            if v is not None
        ]
        if learnt:
            line.append((spent[unit], sum(learnt) / len(learnt)))
    return line
