"""How results are printed: tables for people, strict JSON for programs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from orchestrator.cli.live import clock, size

if TYPE_CHECKING:
    from orchestrator.doctor import Finding
    from orchestrator.results import Show, ShownClient

Shown = Mapping[str, Any]
T = TypeVar("T")
_NAMED_COLUMNS: Final = 6
_LOG_COLUMNS: Final = 180

escaped = escape


def console() -> Console:
    """Standard output; wide where it is no terminal, so that no table is cut in a log."""
    return Console() if Console().is_terminal else Console(width=_LOG_COLUMNS)


def saying(out: Console) -> Callable[[str], None]:
    """Prints lines as they are."""
    return lambda line: out.print(line, highlight=False, soft_wrap=True, markup=False)


def emit(value: T, *, as_json: bool, text: Callable[[Console, T], None]) -> None:
    """Print ``value`` in the format asked for."""
    if as_json:
        print_json(value)
    else:
        text(console(), value)


def print_json(value: object) -> None:
    """Strict JSON: NaN and infinities have become null before they come here."""
    typer.echo(json.dumps(value, indent=2, allow_nan=False, default=str))


def print_outcome(shown: Shown, *, log_path: Path) -> None:
    """The last words of ``perennial run``."""
    out = console()
    if shown["accuracy_matrix"] and shown["tasks"]:
        out.print(_caption(shown), highlight=False)
        out.print(_matrix(shown))
        out.print(_headline(shown))
    style = {"completed": "green", "failed": "red"}.get(shown["status"], "yellow")
    out.print(f"\n[{style}]{shown['status']}[/] in {clock(shown['duration_seconds'] or 0)}", end="")
    out.print(f" · run [bold]{shown['run_id']}[/]")
    if shown["status"] != "completed":
        out.print(f"reason   {escape(_reason(shown))}", highlight=False)
        out.print(f"log      {log_path}", highlight=False, soft_wrap=True)
    if shown["status"] == "interrupted":
        out.print(f"continue perennial resume {shown['run_id']}", highlight=False)
    _print_withheld(out, shown)
    for label, key in (("adapter ", "adapter_path"), ("report  ", "report_path")):
        if shown[key]:
            out.print(f"{label} {shown[key]}", highlight=False, soft_wrap=True)


def print_run(out: Console, shown: Show) -> None:
    """``perennial show``."""
    from orchestrator.report.forgetting import explain

    out.print(f"[bold]{escape(shown['name'])}[/] {shown['run_id']} · {shown['status']}")
    if shown["accuracy_matrix"] and shown["tasks"]:
        out.print(_caption(shown), highlight=False)
        out.print(_matrix(shown))
        out.print(_headline(shown))
    for sentence in explain(shown):
        out.print(escape(sentence), highlight=False, soft_wrap=True)
    _print_withheld(out, shown)
    columns = ("examples", "ACC", "forgetting", "up", "down", "seconds", "failures")
    table = Table("client", "kind", *columns, box=None)
    for client in shown["clients"]:
        table.add_row(
            client["client_id"],
            client["kind"] or "–",
            str(client["num_examples"]),
            number(client["acc"]),
            number(client["forgetting"]),
            size(client["bytes_up"]),
            size(client["bytes_down"]),
            f"{client['seconds']:.1f}",
            _failures(client),
        )
    out.print(table)
    for client in shown["clients"]:
        if client["memory_plan"]:
            line = f"{client['client_id']}: {client['memory_plan']}"
            out.print(escape(line), highlight=False, soft_wrap=True)
    for event in shown["events"]:
        out.print(f"{event['at']}  {event['kind']}: {escape(event['message'])}", highlight=False)


def _failures(client: ShownClient) -> str:
    kept = client["quarantine"]
    return f"{client['failures']}, in quarantine: {kept}" if kept else str(client["failures"])


def _print_withheld(out: Console, shown: Shown) -> None:
    """Which states did not become the adapter, and why."""
    withheld = [release for release in shown["releases"] if not release["published"]]
    for release in withheld:
        index = release["task"]
        apart = shown["arrival"] != "together"
        after = f"stage {index}" if apart else f"task {index} {escape(shown['tasks'][index])}"
        out.print(f"[yellow]withheld[/] after {after}", highlight=False)
        for reason in release["reasons"]:
            out.print(f"         {escape(reason)}", highlight=False, soft_wrap=True)
        if release["path"]:
            out.print(f"         kept at {release['path']}", highlight=False, soft_wrap=True)
    if withheld and not shown["adapter_path"]:
        out.print("no state met publish.require, so there is no adapter", highlight=False)


def print_runs(out: Console, listing: Shown) -> None:
    """``perennial runs``."""
    table = Table("run", "name", "status", "started", "ACC", "forgetting", "up", "down", box=None)
    for run in listing["runs"]:
        table.add_row(
            run["run_id"],
            escape(run["name"]),
            run["status"],
            (run["started_at"] or "")[:19],
            number(run["acc"]),
            number(run["forgetting"]),
            size(run["bytes_up"] or 0),
            size(run["bytes_down"] or 0),
        )
    out.print(table if listing["runs"] else "no runs yet; try `perennial run examples/digits.toml`")


def print_comparison(out: Console, comparison: Shown) -> None:
    """``perennial compare``."""
    names = [f"{run['name']}\n{run['run_id']}" for run in comparison["runs"]]
    table = Table("", *names, box=None)
    for row in comparison["results"]:
        table.add_row(row["metric"], *(_cell(row["metric"], value) for value in row["values"]))
    out.print(table)
    differences = Table("setting", *names, box=None)
    for row in comparison["config"]:
        differences.add_row(row["key"], *(escape(str(value)) for value in row["values"]))
    out.print(differences if comparison["config"] else "no setting differs")


def print_strategies(out: Console, catalog: Shown) -> None:
    """``perennial strategies``."""
    table = Table("kind", "name", "parameters", "what it does", box=None)
    for entry in catalog["strategies"]:
        parameters = ", ".join(f"{k}={v}" for k, v in entry["parameters"].items())
        table.add_row(
            entry["kind"], f"[bold]{entry['name']}[/]", escape(parameters), escape(entry["summary"])
        )
    out.print(table)


def print_findings(out: Console, found: Mapping[str, Sequence[Finding]]) -> None:
    """``perennial doctor``."""
    for finding in found["checks"]:
        mark = "[green]ok[/]  " if finding["ok"] else "[red]bad[/] "
        out.print(f"{mark} {finding['check']}: {escape(finding['detail'])}", highlight=False)


def number(value: float | None) -> str:
    """Three digits, or a dash for what was not measured."""
    return "–" if value is None or math.isnan(value) else f"{value:.3f}"


def _cell(metric: str, value: float | None) -> str:
    if value is not None and metric.startswith("bytes"):
        return size(value)
    return number(value)


def _caption(shown: Shown) -> str:
    apart = shown["arrival"] != "together"
    return f"accuracy on each task, after {'each stage' if apart else 'learning each task'}"


def _matrix(shown: Shown) -> Table:
    """Columns are numbered where the tasks' names would not fit side by side."""
    from orchestrator.summary import row_names

    tasks = [escape(task) for task in shown["tasks"]]
    table = Table(box=None)
    table.add_column("after", no_wrap=True)
    for index, task in enumerate(tasks, start=1):
        table.add_column(task if len(tasks) <= _NAMED_COLUMNS else str(index), justify="right")
    names = ["untrained", *row_names(shown)]
    for label, values in zip(names, shown["accuracy_matrix"], strict=True):
        if any(value is not None for value in values):
            table.add_row(escape(label), *(number(value) for value in values))
    return table


def _headline(shown: Shown) -> str:
    up, down = size(shown["bytes_up"]), size(shown["bytes_down"])
    return (
        f"ACC {number(shown['acc'])} · BWT {number(shown['bwt'])} · "
        f"forgetting {number(shown['forgetting'])} · {up} up, {down} down"
    )


def _reason(shown: Shown) -> str:
    ends = [event for event in shown["events"] if event["kind"] == "status"]
    return ends[-1]["message"] if ends else ""
