"""The tables of the pages: shaded cells, tasks, ranks by block, failures."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any, Final, TypedDict

from orchestrator.figures.naming import block_first, block_of, natural
from orchestrator.report.writing import LOWER_IS_BETTER, METRIC_NAMES, cell, number
from orchestrator.results import Comparison, Show, ShownClient, ShownReply
from orchestrator.summary import row_names

MOST_COLUMNS: Final = 48
_MEMORY: Final = 120  # letters of a failure's detail


class Shaded(TypedDict):
    """A cell; ``shade`` in percent, ``own`` outlines it."""

    text: str
    shade: int
    own: bool


class Row(TypedDict):
    """A named row of shaded cells."""

    name: str
    cells: list[Shaded]


class TaskRow(TypedDict):
    """What became of a task; the scores are None where they were not measured."""

    name: str
    untrained: float | None
    learnt: float | None
    best: float | None
    final: float | None
    lost: float | None


class Block(TypedDict):
    """Groups of one transformer block, or of none."""

    name: str
    rows: list[Row]


class RankMap(TypedDict):
    """Ranks by group and client.  ``hidden`` columns did not fit."""

    columns: list[str]
    blocks: list[Block]
    hidden: int


class FailureRow(TypedDict):
    """Failures of one client for one reason; ``detail`` is the first one's."""

    client_id: str
    reason: str
    count: int
    steps: str
    detail: str


class Forecast(TypedDict):
    """What the cost model expected of a client, and what it was; medians over its rounds."""

    client_id: str
    cells: list[tuple[float | None, float | None, float | None]]  # expected, found, ratio
    uplink: float | None  # bytes per second, as known when the last round was planned
    downlink: float | None
    link_error: float | None


def forecasts(shown: Show) -> list[Forecast]:
    """Per client that trained: seconds of local training, memory of a step, bytes sent up."""
    trained = _trained(shown)
    return [
        Forecast(
            client_id=client["client_id"],
            cells=[_forecast(replies, expected, found) for expected, found in _FORECASTS],
            uplink=replies[-1]["metrics"].get("uplink_bytes_per_second"),
            downlink=replies[-1]["metrics"].get("downlink_bytes_per_second"),
            link_error=replies[-1]["metrics"].get("link_error"),
        )
        for client in shown["clients"]
        if (replies := trained.get(client["client_id"]))
    ]


def _trained(shown: Show) -> Mapping[str, list[ShownReply]]:
    """The updates of every client that sent any, in order."""
    found = dict[str, list[ShownReply]]()
    for record in shown["rounds"]:
        for reply in record["replies"]:
            if record["kind"] == "train" and reply["status"] == "ok":
                found.setdefault(reply["client_id"], []).append(reply)
    return found


def _forecast(
    replies: Sequence[ShownReply], expected: str, found: Callable[[ShownReply], float | None]
) -> tuple[float | None, float | None, float | None]:
    pairs = [
        (wanted, real)
        for reply in replies
        if (wanted := reply["metrics"].get(expected)) and (real := found(reply))
    ]
    if not pairs:
        return None, None, None
    middle = [statistics.median(values) for values in zip(*pairs, strict=True)]
    return middle[0], middle[1], statistics.median(wanted / real for wanted, real in pairs)


def _training_seconds(reply: ShownReply) -> float | None:
    """Of a simulated device where there is one: it does nothing but train."""
    seconds = reply["seconds"]
    return seconds.get("compute" if "up" in seconds else "train")


_FORECASTS: Final[tuple[tuple[str, Callable[[ShownReply], float | None]], ...]] = (
    ("predicted_seconds", _training_seconds),
    ("predicted_memory_bytes", lambda reply: reply["metrics"].get("step_memory_bytes")),
    ("predicted_bytes_up", lambda reply: float(reply["bytes_up"])),
)


def matrix(shown: Show) -> list[Row]:
    """Rows of the accuracy matrix with a shade per cell; rows nobody measured are left out."""
    names = ["0 before training", *row_names(shown)]
    if scored_only_at_the_end(shown):
        names[shown["last_row"]] = "all tasks at once"
    return [
        Row(
            name=names[i],
            cells=[
                Shaded(
                    text=number(v), shade=round(100 * (v or 0.0)), own=i == shown["learnt_at"][j]
                )
                for j, v in enumerate(values)
            ],
        )
        for i, values in enumerate(shown["accuracy_matrix"])
        if any(value is not None for value in values)
    ]


def scored_only_at_the_end(shown: Show) -> bool:
    """Whether nothing between the untrained model and the end was scored: joint training."""
    last = shown["last_row"]
    return last > 1 and all(v is None for row in shown["accuracy_matrix"][1:last] for v in row)


def tasks(shown: Show) -> list[TaskRow]:
    """Every task before, just after and long after it was learnt."""
    rows, last = shown["accuracy_matrix"], shown["last_row"]
    found = list[TaskRow]()
    for j, name in enumerate(shown["tasks"]):
        own, lost = shown["learnt_at"][j], shown["forgetting_per_task"]
        met = own <= last
        before = [rows[i][j] for i in range(own, last)]
        found.append(
            TaskRow(
                name=f"{j + 1} {name}",
                untrained=rows[0][j],
                learnt=rows[own][j] if met else None,
                best=max((value for value in before if value is not None), default=None),
                final=rows[last][j] if met else None,
                lost=lost[j] if j < len(lost) else None,
            )
        )
    return found


def rank_map(shown: Show) -> RankMap:
    """Rank of every group on every client in its last round; 0 is dense, absent is frozen.

    Clients with the same ranks share a column once there are too many for one each.
    """
    columns = _columns([client for client in shown["clients"] if client["ranks"]])
    kept = dict(list(columns.items())[:MOST_COLUMNS])
    top = max((rank for ranks in kept.values() for rank in ranks.values()), default=0) or 1
    groups = sorted({group for ranks in kept.values() for group in ranks}, key=natural)
    blocks = [
        Block(
            name=name or "outside the blocks",
            rows=[
                Row(
                    name=group.removeprefix(name).lstrip("."),
                    cells=[_rank_cell(ranks.get(group), top) for ranks in kept.values()],
                )
                for group in members
            ],
        )
        for name, members in groupby(sorted(groups, key=block_first), key=block_of)
    ]
    return RankMap(columns=list(kept), blocks=blocks, hidden=len(columns) - len(kept))


def failures(shown: Show) -> list[FailureRow]:
    """Failures by client and reason, in client order."""
    found = dict[tuple[str, str], list[tuple[int, str]]]()
    for record in shown["rounds"]:
        for reply in record["replies"]:
            if reply["status"] == "failed":
                key = (reply["client_id"], reply["failure_reason"] or "unknown")
                found.setdefault(key, []).append((record["step"], reply["failure_detail"] or ""))
    return [
        FailureRow(
            client_id=client,
            reason=reason,
            count=len(times),
            steps=_few([str(step) for step, _ in times]),
            detail=_short(times[0][1]),
        )
        for (client, reason), times in sorted(found.items())
    ]


def results(comparison: Comparison) -> list[dict[str, Any]]:
    """Rows of a comparison in words, the best value of each marked unless all are alike."""
    return [
        {
            "name": METRIC_NAMES[row["metric"]],
            "cells": [
                {"text": cell(row["metric"], value), "best": value is not None and value == best}
                for value in row["values"]
            ],
        }
        for row in comparison["results"]
        for best in [_best(row["metric"], row["values"])]
    ]


def stages(shows: Sequence[Show]) -> list[list[str]]:
    """Mean accuracy of every run after one task learnt, after two, and so on."""
    columns = [shown["average_accuracy"] for shown in shows]
    return [
        [number(column[i]) if i < len(column) else number(None) for column in columns]
        for i in range(max((len(column) for column in columns), default=0))
    ]


def _best(metric: str, values: Sequence[float | None]) -> float | None:
    measured = [value for value in values if value is not None]
    if len(set(measured)) < 2:
        return None
    return min(measured) if metric in LOWER_IS_BETTER else max(measured)


def _columns(clients: Sequence[ShownClient]) -> dict[str, Mapping[str, int]]:
    if len(clients) <= MOST_COLUMNS:
        return {client["client_id"]: client["ranks"] for client in clients}
    alike = dict[tuple[tuple[str, int], ...], list[str]]()
    for client in clients:
        alike.setdefault(tuple(sorted(client["ranks"].items())), []).append(client["client_id"])
    return {
        ids[0] if len(ids) == 1 else f"{ids[0]} and {len(ids) - 1} more": dict(ranks)
        for ranks, ids in alike.items()
    }


def _rank_cell(rank: int | None, top: int) -> Shaded:
    if rank is None:
        return Shaded(text="", shade=0, own=False)
    return Shaded(text=str(rank) if rank else "dense", shade=round(100 * rank / top), own=rank == 0)


def _few(steps: Iterable[str]) -> str:
    listed = list(steps)
    return ", ".join(listed) if len(listed) <= 6 else f"{', '.join(listed[:5])} … {listed[-1]}"


def _short(detail: str) -> str:
    return detail if len(detail) <= _MEMORY else f"{detail[:_MEMORY]}…"
