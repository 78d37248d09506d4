"""What each page shows, already summed: the templates compute nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, get_args
from urllib.parse import urlencode

from markupsafe import Markup

from orchestrator.figures import ranks, scores, steps
from orchestrator.figures.inputs import StepMark
from orchestrator.report.figures import traced
from orchestrator.report.forgetting import explain_summed
from orchestrator.report.writing import LOWER_IS_BETTER, METRIC_NAMES, cell
from orchestrator.results import Comparison, Listed, Overview, ShownClient, SummedRound
from orchestrator.store.base import ALIVE, RunRecord, RunStatus
from orchestrator.store.browsing import (
    ClientPart,
    ClientRun,
    NumberedEvent,
    Pulse,
    RunCourse,
    Sorting,
    Wanted,
)
from orchestrator.store.totals import ClientTotals
from orchestrator.summary import compare, outline, row_names, run_listing, step_costs
from orchestrator.web.configuration import Setting, settings_of
from orchestrator.web.reader import RunDocuments
from orchestrator.web.words import progress_words

_UNITS: Final[Mapping[str, str]] = {
    "rounds": "By training rounds",
    "megabytes": "By bytes sent",
    "seconds": "By time",
    "tasks": "By tasks learnt",
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
    words: str
    rows: Sequence[str]
    explanation: Sequence[str]
    accuracy_curves: Markup
    forgetting_curves: Markup
    loss: Markup
    truncation: Markup
    ranks_by_client: Markup
    choice_by_client: Markup
    ranks_by_round: Markup
    drift: Markup
    traffic: Markup
    server_seconds: Markup
    client_seconds: Markup
    phases: Sequence[str]
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
    curves: Sequence[tuple[str, Markup]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientView:
    """A client in one run: ``line`` sums up ``parts``, its replies in order."""

    run_id: str
    run_name: str
    line: ClientLine
    parts: Sequence[ClientPart]
    seconds: Markup
    traffic: Markup
    ranks: Markup


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
    lines, progress = client_lines(digest.clients, documents.clients), progress_of(digest.run)
    return RunView(
        shown=shown,
        alive=RunStatus(shown["status"]) in ALIVE,
        progress=progress,
        cursor=f"{last_step}.{pulse.last_event}",
        words=progress_words(shown["status"], progress, shown["tasks"]),
        rows=row_names(shown),
        explanation=explain_summed(shown, rounds),
        accuracy_curves=scores.accuracy_curves(shown),
        forgetting_curves=scores.forgetting_curves(shown),
        loss=steps.loss_curve(rounds),
        truncation=steps.truncation_curve(rounds),
        ranks_by_client=ranks.ranks_by_client(
            {each.client_id: each.last_ranks for each in digest.clients if each.last_ranks}
        ),
        choice_by_client=ranks.choice_by_client(
            {each.client_id: each.groups for each in digest.clients if each.rounds},
            {each.client_id: each.rounds for each in digest.clients},
        ),
        ranks_by_round=ranks.ranks_by_round(
            [step.totals.ranks for step in digest.steps if step.totals.ranks],
            [step.record.task_index for step in digest.steps if step.totals.ranks],
        ),
        drift=steps.drift_map(documents.drift),
        traffic=steps.traffic_bars(rounds),
        server_seconds=steps.server_time_bars(rounds),
        client_seconds=steps.client_time_bars(rounds),
        phases=[p for p in _PHASES if any(p in each.seconds for each in lines)],
        clients=lines,
        last_rounds=tuple(reversed(rounds[-num_shown:])),
        num_rounds=len(rounds),
        replay_steps=tuple(r["step"] for r in rounds if r["kind"] == "replay"),
        events=tuple(events),
        settings=tuple(settings_of(digest.run.config)),
        has_adapter=has_adapter,
    )


def client_view(run: RunRecord, line: ClientLine, parts: Sequence[ClientPart]) -> ClientView:
    """A client in one run."""
    marks = [StepMark(p.step.step_index, p.step.kind, p.step.task_index) for p in parts]
    trained = [part for part in parts if part.reply.ranks]
    return ClientView(
        run_id=run.run_id,
        run_name=run.name,
        line=line,
        parts=parts,
        seconds=steps.phase_bars(
            [part.reply.seconds for part in parts], marks, "Seconds of the client by step and phase"
        ),
        traffic=steps.bytes_bars(
            [(part.reply.bytes_up, part.reply.bytes_down) for part in parts], marks
        ),
        ranks=ranks.ranks_of_one(
            [part.reply.ranks for part in trained], [part.step.task_index for part in trained]
        ),
    )


def compare_view(courses: Sequence[RunCourse]) -> CompareView:
    """Runs side by side."""
    outlines = [outline(course) for course in courses]
    comparison = compare(outlines)
    traces = [
        traced(shown, step_costs(course.costs))
        for shown, course in zip(outlines, courses, strict=True)
    ]
    return CompareView(
        comparison=comparison,
        results=tuple(_row(row["metric"], row["values"]) for row in comparison["results"]),
        curves=[(title, scores.acc_over(traces, unit)) for unit, title in _UNITS.items()],
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
