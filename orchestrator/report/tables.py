"""The tables of the pages: shaded cells, tasks, ranks by block, failures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any, Final, TypedDict

from orchestrator.figures.naming import block_first, block_of, natural
from orchestrator.report.writing import LOWER_IS_BETTER, METRIC_NAMES, cell, number
from orchestrator.results import Comparison, Show, ShownClient
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
