"""What each page shows, already summed: the templates compute nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, get_args
from urllib.parse import urlencode

from orchestrator.report.writing import LOWER_IS_BETTER, METRIC_NAMES, cell
from orchestrator.results import Comparison, Listed, Overview, ShownClient, SummedRound
from orchestrator.store.base import ALIVE, RunRecord, RunStatus
from orchestrator.store.browsing import ClientPart, ClientRun, NumberedEvent, Pulse, Sorting, Wanted
from orchestrator.store.totals import ClientTotals
from orchestrator.summary import compare, run_listing
from orchestrator.web import figures
from orchestrator.web.configuration import Setting, settings_of
from orchestrator.web.figures import Chart, HeatMap, Stacks
from orchestrator.web.reader import RunDocuments

UNITS: Final[Mapping[str, str]] = {
    "tasks": "tasks learnt",
    "rounds": "training rounds",
    "bytes": "bytes, both ways, all clients",
    "seconds": "seconds of the server's clock",
}
_PHASES: Final = ("down", "load", "evaluate", "probe", "train", "compress", "save", "up")


@dataclass(frozen=True, slots=True, kw_only=True)
class Paging:
    """Where a page of a list is; ``previous`` and ``following`` are links, None at the ends."""

    offset: int
    limit: int
    total: int
    previous: str | None
    following: str | None

    @property
    def first(self) -> int:
        """Number of the first item shown, from 1; 0 of none."""
        return self.offset + 1 if self.total else 0

    @property
    def last(self) -> int:
        """Number of the last item shown."""
        return min(self.offset + self.limit, self.total)


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a run has come; ``share`` is None before that is known."""

    steps_done: int
    steps: int | None
    share: float | None
    phase: str | None
    task: int | None
    round: int | None
    rounds_in_task: int | None
    clients_done: int | None
    clients_asked: int | None
    loss: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunLine:
    """A run in the list."""

    listed: Listed
    progress: Progress
    alive: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RunsView:
    """The list of runs; ``statuses`` and ``tags`` count all runs, whatever is looked for."""

    runs: tuple[RunLine, ...]
    wanted: Wanted
    statuses: Mapping[str, int]
    tags: Mapping[str, int]
    paging: Paging
    sort_links: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientLine:
    """A client of a run.  ``seconds`` are its own by phase; the link is as it was last known."""

    shown: ShownClient
    asked: int
    seconds: Mapping[str, float]
    failures: Mapping[str, int]
    ranks: str
    num_groups: int
    uplink_bytes_per_second: float | None
    downlink_bytes_per_second: float | None
    memory_limit_bytes: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunView:
    """The page of a run; ``cursor`` is where its stream goes on."""

    shown: Overview
    alive: bool
    progress: Progress
    cursor: str
    accuracy: HeatMap
    accuracy_curves: Chart
    forgetting_curves: Chart
    loss: Chart
    ranks_by_client: HeatMap
    choice_by_client: HeatMap
    ranks_by_round: HeatMap
    drift: HeatMap
    traffic: Stacks
    server_seconds: Stacks
    client_seconds: Stacks
    clients: tuple[ClientLine, ...]
    last_rounds: tuple[SummedRound, ...]
    num_rounds: int
    replay_steps: tuple[int, ...]
    events: tuple[NumberedEvent, ...]
    settings: tuple[Setting, ...]
    has_adapter: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedRow:
    """A result of several runs; ``best`` are the places of the best values."""

    metric: str
    name: str
    texts: tuple[str, ...]
    best: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareView:
    """Several runs side by side."""

    comparison: Comparison
    results: tuple[ComparedRow, ...]
    curves: tuple[Chart, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientView:
    """A client in one run: ``line`` sums up ``parts``, its replies in order."""

    run_id: str
    run_name: str
    line: ClientLine
    parts: tuple[ClientPart, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientRunsView:
    """A client over runs, newest first."""

    client_id: str
    runs: tuple[ClientRun, ...]
    paging: Paging


def progress_of(run: RunRecord | Pulse) -> Progress:
    """What a run last published of itself."""
    known, done = run.progress, int(run.progress.get("steps_done") or 0)
    steps = known.get("steps")
    return Progress(
        steps_done=done,
        steps=steps,
        share=done / steps if steps else None,
        **{
            name: known.get(name)
            for name in (
                "phase",
                "task",
                "round",
                "rounds_in_task",
                "clients_done",
                "clients_asked",
                "loss",
            )
        },
    )


def run_lines(runs: Sequence[RunRecord]) -> tuple[RunLine, ...]:
    """Runs of a list."""
    listing = run_listing(runs)["runs"]
    return tuple(
        RunLine(listed=listed, progress=progress_of(run), alive=run.status in ALIVE)
        for run, listed in zip(runs, listing, strict=True)
    )


def client_lines(
    totals: Sequence[ClientTotals], clients: Sequence[ShownClient]
) -> tuple[ClientLine, ...]:
    """Clients of a run."""
    return tuple(client_line(each, shown) for each, shown in zip(totals, clients, strict=True))


def client_line(totals: ClientTotals, shown: ShownClient) -> ClientLine:
    """A client of a run."""
    metrics, low_rank = totals.last_metrics, [r for r in totals.last_ranks.values() if r]
    spread = f"{min(low_rank)}–{max(low_rank)}" if low_rank else "–"
    return ClientLine(
        shown=shown,
        asked=totals.asked,
        seconds={name: totals.seconds[name] for name in _PHASES if name in totals.seconds},
        failures=totals.failures,
        ranks=str(low_rank[0]) if len(set(low_rank)) == 1 else spread,
        num_groups=len(totals.last_ranks),
        uplink_bytes_per_second=metrics.get("uplink_bytes_per_second"),
        downlink_bytes_per_second=metrics.get("downlink_bytes_per_second"),
        memory_limit_bytes=metrics.get("memory_limit_bytes"),
    )


def run_view(
    documents: RunDocuments,
    pulse: Pulse,
    events: Sequence[NumberedEvent],
    *,
    num_shown: int,
    has_adapter: bool,
) -> RunView:
    """The page of a run with its ``num_shown`` newest steps and ``events``."""
    digest, shown, rounds = documents.digest, documents.overview, documents.rounds
    last_step = rounds[-1]["step"] if rounds else -1
    return RunView(
        shown=shown,
        alive=RunStatus(shown["status"]) in ALIVE,
        progress=progress_of(digest.run),
        cursor=f"{last_step}.{pulse.last_event}",
        accuracy=figures.accuracy_map(shown),
        accuracy_curves=figures.accuracy_curves(shown),
        forgetting_curves=figures.forgetting_curves(shown),
        loss=figures.loss_curve(rounds),
        ranks_by_client=figures.rank_map_by_client(digest.clients),
        choice_by_client=figures.choice_map_by_client(digest.clients),
        ranks_by_round=figures.rank_map_by_round(digest.steps),
        drift=figures.drift_map(rounds),
        traffic=figures.traffic(rounds),
        server_seconds=figures.server_seconds(rounds),
        client_seconds=figures.client_seconds(rounds),
        clients=client_lines(digest.clients, documents.clients),
        last_rounds=tuple(reversed(rounds[-num_shown:])),
        num_rounds=len(rounds),
        replay_steps=tuple(r["step"] for r in rounds if r["kind"] == "replay"),
        events=tuple(events),
        settings=tuple(settings_of(digest.run.config)),
        has_adapter=has_adapter,
    )


def compare_view(runs: Sequence[RunDocuments]) -> CompareView:
    """Runs side by side."""
    comparison = compare([run.overview for run in runs])
    pairs = [(run.overview, run.rounds) for run in runs]
    return CompareView(
        comparison=comparison,
        results=tuple(_row(row["metric"], row["values"]) for row in comparison["results"]),
        curves=tuple(figures.acc_over(pairs, unit, label) for unit, label in UNITS.items()),
    )


def paging_of(
    path: str,
    query: Mapping[str, Any],
    *,
    offset: int,
    limit: int,
    total: int,
    name: str = "offset",
) -> Paging:
    """Links to the pages before and after, with the same ``query``; ``name`` is the offset's."""

    def link(at: int) -> str:
        return f"{path}?{urlencode({**query, name: at, 'limit': limit}, doseq=True)}"

    return Paging(
        offset=offset,
        limit=limit,
        total=total,
        previous=link(max(0, offset - limit)) if offset else None,
        following=link(offset + limit) if offset + limit < total else None,
    )


def sort_links(query: Mapping[str, Any], wanted: Wanted) -> dict[str, str]:
    """For every way to sort, a link that sorts so, or the other way round if it does already."""
    return {
        sort: "/?" + urlencode({**query, "sort": sort, "order": _order(sort, wanted)}, doseq=True)
        for sort in get_args(Sorting)
    }


def _order(sort: str, wanted: Wanted) -> str:
    if sort == wanted.sort:
        return "asc" if wanted.descending else "desc"
    return "asc" if sort in ("name", "forgetting") else "desc"


def _row(metric: str, values: Sequence[float | None]) -> ComparedRow:
    known = [value for value in values if value is not None]
    best = (min if metric in LOWER_IS_BETTER else max)(known, default=None)
    alike = len(set(known)) < 2
    return ComparedRow(
        metric=metric,
        name=METRIC_NAMES.get(metric, metric),
        texts=tuple(cell(metric, value) for value in values),
        best=() if alike else tuple(i for i, value in enumerate(values) if value == best),
    )


def differing(settings: Sequence[Setting]) -> list[Setting]:
    """Those that are not the defaults."""
    return [setting for setting in settings if setting["differs"]]
