"""One self-contained HTML file about a run, or about several side by side."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from orchestrator.report import figures
from orchestrator.report.reading import in_words
from orchestrator.summary import compare

Json = dict[str, Any]


def render_report(shown: Json, *, generated_at: datetime) -> str:
    """The page about one run, from what ``summary.show`` gives."""
    template = _environment().get_template("run.html.j2")
    return template.render(
        run=shown,
        words=in_words(shown),
        generated_at=f"{generated_at:%Y-%m-%d %H:%M} UTC",
        matrix=figures.matrix(shown),
        curves=figures.accuracy_curves(shown),
        loss=figures.loss_curve(shown),
        traffic=figures.traffic_bars(shown),
        time=figures.time_bars(shown),
        ranks=figures.rank_map(shown),
        settings=figures.settings(shown["config"]),
    )


def render_comparison(shows: Sequence[Json]) -> str:
    """The page about several runs: results, curves over tasks, bytes and seconds, settings."""
    template = _environment().get_template("compare.html.j2")
    return template.render(
        comparison=compare(shows),
        over_tasks=figures.acc_over(shows, "tasks"),
        over_bytes=figures.acc_over(shows, "bytes"),
        over_seconds=figures.acc_over(shows, "seconds"),
    )


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("orchestrator.report"),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        number=figures.number, size=figures.size, seconds=figures.duration, cell=figures.cell
    )
    return environment
