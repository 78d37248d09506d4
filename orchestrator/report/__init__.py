"""One self-contained HTML file about a run, or about several side by side."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from orchestrator.figures import scores, steps, style_sheet
from orchestrator.report import tables, writing
from orchestrator.report.figures import traced
from orchestrator.report.forgetting import explain
from orchestrator.report.reading import in_words
from orchestrator.report.replies import RepliesSeen
from orchestrator.results import Show
from orchestrator.store.drift import DriftTable
from orchestrator.summary import compare, flattened, row_names

__all__ = ["RepliesSeen", "render_comparison", "render_report"]


def render_report(shown: Show, seen: RepliesSeen, *, generated_at: datetime) -> str:
    """The page about one run, from what ``summary.show`` gives and what was seen of its replies."""
    return (
        _environment()
        .get_template("one_run.html.j2")
        .render(
            rows=row_names(shown),
            run=shown,
            words=in_words(shown),
            explanation=explain(shown),
            generated_at=f"{generated_at:%Y-%m-%d %H:%M} UTC",
            matrix=tables.matrix(shown),
            tasks=tables.tasks(shown),
            curves=scores.accuracy_curves(shown),
            forgetting=scores.forgetting_curves(shown),
            loss=steps.loss_curve(shown["rounds"]),
            truncation=steps.truncation_curve(shown["rounds"]),
            traffic=steps.traffic_bars(shown["rounds"]),
            server_time=steps.server_time_bars(shown["rounds"]),
            client_time=steps.client_time_bars(shown["rounds"]),
            failures=seen.failures(),
            forecasts=seen.forecasts(),
            drift=steps.drift_map(DriftTable.of((r["task"], r["drift"]) for r in shown["rounds"])),
            ranks=tables.rank_map(shown),
            settings=list(flattened(shown["config"])),
        )
    )


def render_comparison(shows: Sequence[Show]) -> str:
    """The page about several runs: results, curves over four kinds of effort, settings."""
    comparison = compare(shows)
    traces = [traced(shown, shown["rounds"]) for shown in shows]
    return (
        _environment()
        .get_template("many_runs.html.j2")
        .render(
            comparison=comparison,
            results=tables.results(comparison),
            stages=tables.stages(shows),
            curves=[
                (title, scores.acc_over(traces, unit))
                for title, unit in (
                    ("By tasks learnt", "tasks"),
                    ("By training rounds", "rounds"),
                    ("By bytes sent", "megabytes"),
                    ("By time", "seconds"),
                )
            ],
        )
    )


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("orchestrator.report"),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["style_sheet"] = Markup(style_sheet())  # noqa: S704 - files of ours
    environment.filters.update(
        breakable=writing.breakable,
        number=writing.number,
        error=writing.error,
        percent=writing.percent,
        size=writing.size,
        seconds=writing.duration,
        setting=writing.setting,
        shade=writing.shade,
    )
    return environment
