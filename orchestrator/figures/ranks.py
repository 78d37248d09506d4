"""Who trains what at which rank: by part of the model and client, and by rank and round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from markupsafe import Markup

from orchestrator.figures.heat import heat_map
from orchestrator.figures.heat_words import HeatMap, grid
from orchestrator.figures.naming import in_model_order, told_apart
from orchestrator.figures.steps import task_bands

_DENSE = "dense"


def ranks_by_client(ranks: Mapping[str, Mapping[str, int]]) -> Markup:
    """What each client trained: the LoRA rank of every group, 0 is dense, absent is frozen."""
    groups = in_model_order({group for each in ranks.values() for group in each})
    short = told_apart(groups)
    return heat_map(
        HeatMap(
            label="Rank of every part of the model on every client",
            x_label="client",
            row_label="part of the model",
            rows=[short[group] for group in groups],
            cells=grid([[_value(each.get(group)) for each in ranks.values()] for group in groups]),
            columns=_numbers(list(ranks)),
            write=_rank,
            kind=_DENSE,
        )
    )


def ranks_by_round(counts: Sequence[Mapping[int, int]], tasks: Sequence[int]) -> Markup:
    """How many trainings had each rank, by round: a training is one group on one client.

    ``counts`` has a mapping of rank to number per round, ``tasks`` the task of each.
    """
    ranks = sorted({rank for each in counts for rank in each}, reverse=True)
    return heat_map(
        HeatMap(
            label="How often each rank was trained, by round",
            x_label="rounds that trained",
            row_label="rank",
            rows=[str(rank) if rank else _DENSE for rank in ranks],
            cells=grid([[each.get(rank) for each in counts] for rank in ranks]),
            write=lambda value: f"{value:.0f}",
            bands=task_bands(tasks, range(len(tasks))),
        )
    )


def choice_by_client(groups: Mapping[str, Mapping[str, int]], rounds: Mapping[str, int]) -> Markup:
    """In which share of its rounds each client trained each group; ``groups`` counts them."""
    names = in_model_order({group for each in groups.values() for group in each})
    short = told_apart(names)
    return heat_map(
        HeatMap(
            label="Share of rounds in which each client trained each part of the model",
            x_label="client",
            row_label="part of the model",
            rows=[short[name] for name in names],
            cells=grid(
                [[_share(each.get(n), rounds[c]) for c, each in groups.items()] for n in names]
            ),
            columns=_numbers(list(groups)),
            write=lambda value: f"{value:.0%}",
        )
    )


def ranks_of_one(ranks: Sequence[Mapping[str, int]], tasks: Sequence[int]) -> Markup:
    """What one client trained, by round: the rank of every group."""
    groups = in_model_order({group for each in ranks for group in each})
    short = told_apart(groups)
    return heat_map(
        HeatMap(
            label="Rank of every part of the model by round",
            x_label="rounds it trained in",
            row_label="part of the model",
            rows=[short[group] for group in groups],
            cells=grid([[_value(each.get(group)) for each in ranks] for group in groups]),
            write=_rank,
            bands=task_bands(tasks, range(len(tasks))),
            kind=_DENSE,
        )
    )


def _share(count: int | None, of: int) -> float | None:
    return None if count is None else count / of


def _value(rank: int | None) -> float | None:
    """Dense is of another kind than any rank."""
    return -1.0 if rank == 0 else rank


def _rank(value: float) -> str:
    return _DENSE if value < 0 else f"{value:.4g}"


def _numbers(clients: Sequence[str]) -> list[str]:
    """The clients' names without the letters they all begin with."""
    heads = {client.rstrip("0123456789") for client in clients}
    if len(clients) < 2 or len(heads) != 1:
        return list(clients)
    (head,) = heads
    return [client.removeprefix(head) or client for client in clients]
