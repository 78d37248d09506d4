"""Commands of ``perennial``: parse, call, print.

Exit codes: 0 done, 1 the run failed, 2 bad usage or configuration, 130 interrupted and resumable.
"""

from __future__ import annotations

import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.console import Console

from orchestrator.cli import federation, monitoring, output, ui, upkeep
from orchestrator.cli.connecting import connection
from orchestrator.cli.live import LiveView
from orchestrator.examples import NAMES, example_text
from orchestrator.home import Home
from orchestrator.signals import handling
from orchestrator.store.base import RunRecord, RunStatus
from strategies.errors import ConfigError, Fault, PerennialError, RunNotFoundError

# What takes long to load is loaded by the command that needs it: `--help` should not wait for it.
if TYPE_CHECKING:
    from orchestrator.cli.remote_run import RemoteRun
    from orchestrator.config import RunConfig
    from orchestrator.deployment.control import Connection, Control
    from orchestrator.restarts import Ending
    from orchestrator.results import Show

app = typer.Typer(
    help="Continual federated fine-tuning: many data owners, task after task, nothing forgotten.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
config_app = typer.Typer(help="The run file.", no_args_is_help=True)
db_app = typer.Typer(help="The run database.", no_args_is_help=True)
app.add_typer(config_app, name="config")
app.add_typer(db_app, name="db")

EXIT_CODES: Final = {RunStatus.COMPLETED: 0, RunStatus.FAILED: 1, RunStatus.INTERRUPTED: 130}


class Format(StrEnum):
    """How a listing is printed."""

    TEXT = "text"
    JSON = "json"


RunFile = Annotated[Path, typer.Argument(help="A TOML run file.", show_default=False)]
RunId = Annotated[str, typer.Argument(help="A run's id, the start of one, or `latest`.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override, e.g. seed=3.")
]
AsFormat = Annotated[Format, typer.Option("--format", help="Text for people, JSON for programs.")]
Restarted = Annotated[
    int,
    typer.Option(
        "--restarts",
        metavar="N",
        min=0,
        help="Resume the run up to N times if its process dies or it is interrupted unasked. "
        "A run that failed would fail again and is not restarted.",
    ),
]
Once = Annotated[
    bool,
    typer.Option(
        "--once",
        help="If there is a run of this very configuration, carry that one on to its end instead "
        "of beginning another. For whatever starts commands again, such as a Job.",
    ),
]
On = Annotated[
    str | None,
    typer.Option(metavar="HOST:PORT", help="Run on this SuperLink instead of simulating."),
]

app.command()(federation.certs)
app.command()(federation.server)
app.command()(federation.client)
app.command()(monitoring.metrics)
app.command()(monitoring.mirror)
app.command()(upkeep.gc)
app.command()(upkeep.delete)
app.command()(ui.ui)


def main() -> None:
    """Entry point: errors of ours become one message and an exit code."""
    try:
        app(standalone_mode=True)
    except (ConfigError, RunNotFoundError) as error:
        _complain(error)
        sys.exit(2)
    except PerennialError as error:
        _complain(error)
        sys.exit(1)


def _complain(error: PerennialError) -> None:
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print(f"[bold red]error[/] {output.escaped(str(error))}")


@app.command()
def run(  # noqa: PLR0913 - a command's options
    path: RunFile,
    overrides: Overrides = None,
    on: On = None,
    root_certificates: federation.RootCertificates = None,
    token_file: federation.TokenFile = None,
    insecure: federation.Insecure = False,  # noqa: FBT002 - a command-line flag
    restarts: Restarted = 0,
    once: Once = False,  # noqa: FBT002 - a command-line flag
) -> None:
    """Run a file: simulate its clients, or with --on have those of a real federation learn."""
    from orchestrator.conduct import require_simulated, submit
    from orchestrator.config import load_config

    config, home = load_config(path, overrides or ()), Home.from_environment()
    begun = _begun(config, home) if once else None
    if on is None:
        if begun:
            require_simulated(begun)
        _carry_out(begun.run_id if begun else submit(config, home), config, home, restarts)
        return
    from orchestrator.cli.remote_run import RemoteRun

    with _control(connection(on, root_certificates, token_file, insecure=insecure)) as control:
        remote = RemoteRun(control, config, home, output.console())
        _follow(remote, begun.run_id if begun else None, restarts)


def _begun(config: RunConfig, home: Home) -> RunRecord | None:
    """The run of this configuration to be carried on, if any; one that has ended ends us too."""
    from orchestrator.conduct import reclaim
    from orchestrator.once import earlier_run

    try:
        with handling(signal.default_int_handler):
            found = earlier_run(config, home.store(), output.saying(output.console()))
    except KeyboardInterrupt:  # the run itself goes on
        raise typer.Exit(EXIT_CODES[RunStatus.INTERRUPTED]) from None
    if found is None:
        return None
    if found.status in (RunStatus.COMPLETED, RunStatus.FAILED):
        log_path = home.run_folder(found.run_id) / "run.log"
        output.print_outcome(_shown(found.run_id, home), log_path=log_path)
        raise typer.Exit(EXIT_CODES[found.status])
    return reclaim(found.run_id, home.store())


@app.command()
def resume(
    run_id: RunId,
    on: On = None,
    root_certificates: federation.RootCertificates = None,
    token_file: federation.TokenFile = None,
    insecure: federation.Insecure = False,  # noqa: FBT002 - a command-line flag
    restarts: Restarted = 0,
) -> None:
    """Continue an interrupted run from its last committed round, with --on where it began there."""
    from orchestrator.cli.remote_run import RemoteRun
    from orchestrator.conduct import reclaim, require_simulated
    from orchestrator.config import parse_config

    home = Home.from_environment()
    record = reclaim(run_id, home.store())
    config = parse_config(record.config, source=f"run {record.run_id}")
    if on is None:
        require_simulated(record)
        _carry_out(record.run_id, config, home, restarts)
        return
    with _control(connection(on, root_certificates, token_file, insecure=insecure)) as control:
        _follow(RemoteRun(control, config, home, output.console()), record.run_id, restarts)


@contextmanager
def _control(to: Connection) -> Iterator[Control]:
    from orchestrator.deployment.control import Control

    control = Control.open(to)
    try:
        yield control
    finally:
        control.close()


def _follow(remote: RemoteRun, run_id: str | None, restarts: int) -> None:
    from orchestrator.deployment.server_settings import superlink_folder

    with handling(signal.default_int_handler):
        ending = remote.carried(run_id, restarts)
    if ending.run_id:
        folder = superlink_folder(remote.home, remote.control.connection.address.port)
        output.print_outcome(_shown(ending.run_id, remote.home), log_path=folder / "superlink.log")
    raise typer.Exit(EXIT_CODES[ending.status])


def _carry_out(run_id: str, config: RunConfig, home: Home, restarts: int) -> None:
    from orchestrator.launch import run_in_process

    live = LiveView(run_id, home.store(), output.console())
    with handling(signal.default_int_handler), live as view:
        if config.federation.transport == "in-process" and not restarts:
            status = run_in_process(run_id, config, home, on_progress=view.refresh)
        else:
            status = _in_child_processes(run_id, home, view, restarts)
    output.print_outcome(_shown(run_id, home), log_path=home.run_folder(run_id) / "run.log")
    raise typer.Exit(EXIT_CODES[status])


def _in_child_processes(run_id: str, home: Home, view: LiveView, restarts: int) -> RunStatus:
    from orchestrator.launch import Simulation
    from orchestrator.restarts import Ending, Restarts

    def attempt(_: str | None) -> Ending:
        child = Simulation.start(run_id, home)
        status = child.watch(view.refresh)
        return Ending(run_id=run_id, status=status, asked=child.asked)

    carrying = Restarts(store=home.store(), limit=restarts, say=output.saying(view.console))
    return carrying.carry(attempt, run_id).status


@app.command()
def runs(as_format: AsFormat = Format.TEXT, limit: int = 20) -> None:
    """List runs, newest first."""
    from orchestrator.summary import run_listing

    listing = run_listing(Home.from_environment().store().list_runs(limit=limit))
    output.emit(listing, as_json=as_format is Format.JSON, text=output.print_runs)


@app.command("show")
def show_run(run_id: RunId = "latest", as_format: AsFormat = Format.TEXT) -> None:
    """Everything known of a run."""
    shown = _shown(run_id, Home.from_environment())
    output.emit(shown, as_json=as_format is Format.JSON, text=output.print_run)


@app.command("compare")
def compare_runs(
    run_ids: Annotated[list[str], typer.Argument(help="Two or more runs.")],
    as_format: AsFormat = Format.TEXT,
    html: Annotated[Path | None, typer.Option(help="Also write a page with curves.")] = None,
) -> None:
    """Results side by side, and the settings in which the runs differ."""
    from orchestrator.summary import compare

    home = Home.from_environment()
    shows = [_shown(run_id, home) for run_id in run_ids]
    if html:
        from orchestrator.report import render_comparison

        html.write_text(render_comparison(shows), encoding="utf-8")
    output.emit(compare(shows), as_json=as_format is Format.JSON, text=output.print_comparison)


@app.command()
def report(
    run_id: RunId = "latest",
    to: Annotated[Path | None, typer.Option(help="Default: in the run's own folder.")] = None,
) -> None:
    """Write one self-contained HTML file about a run."""
    from orchestrator.conduct import write_report

    home = Home.from_environment()
    record = home.store().get_run(run_id)
    path = to or home.run_folder(record.run_id) / "report.html"
    write_report(record.run_id, home.store(), path)
    typer.echo(path)


@app.command()
def export(
    run_id: RunId,
    to: Annotated[Path, typer.Option(help="A new folder.")],
    merged: Annotated[  # noqa: FBT002 - a command-line flag
        bool, typer.Option("--merged", help="The whole model, adapter merged.")
    ] = False,
) -> None:
    """Copy a run's newest published adapter, in PEFT format, or write the merged model."""
    record = Home.from_environment().store().get_run(run_id)
    if record.adapter_path is None or not Path(record.adapter_path).is_dir():
        found = record.adapter_path or "none"
        expected = "an adapter published after a task"
        hint = "`perennial show` says whether publish.require withheld it"
        raise ConfigError("export", [Fault(record.run_id, found, expected, hint)])
    if to.exists() and any(to.iterdir()):
        raise ConfigError("export", [Fault("--to", f"{to}, not empty", "a new or empty folder")])
    if merged:
        from orchestrator.launch import export_merged

        export_merged(Path(record.adapter_path), to)
    else:
        shutil.copytree(record.adapter_path, to, dirs_exist_ok=True)
    typer.echo(to)


@app.command()
def strategies(
    what: Annotated[str | None, typer.Argument(help="A kind, or a strategy's name.")] = None,
    as_format: AsFormat = Format.TEXT,
) -> None:
    """The catalog: every strategy by kind, with its parameters and source."""
    from orchestrator.entries import catalog_entries
    from strategies.catalog import KINDS, nearest

    entries = catalog_entries()
    if what:
        entries = [e for e in entries if what in (e["kind"], e["name"])]
    if not entries:
        words = [*KINDS, *(name for table in KINDS.values() for name in table)]
        fault = Fault(
            "strategies", repr(what), f"one of {', '.join(words)}", nearest(what or "", words)
        )
        raise ConfigError("strategies", [fault])
    output.emit(
        {"strategies": entries}, as_json=as_format is Format.JSON, text=output.print_strategies
    )


@app.command()
def init(
    example: Annotated[str, typer.Argument(help=f"One of {', '.join(NAMES)}.")] = "digits",
    to: Annotated[Path | None, typer.Option(help="Default: <example>.toml here.")] = None,
) -> None:
    """Write an example run file here."""
    text, path = example_text(example), to or Path(f"{example}.toml")
    if path.exists():
        raise ConfigError("init", [Fault(str(path), "a file", "a path that is free", "try --to")])
    path.write_text(text, encoding="utf-8")
    typer.echo(f"wrote {path}; next: perennial run {path}")


@app.command()
def doctor(as_format: AsFormat = Format.TEXT) -> None:
    """Look for what would break a run before one is started."""
    from orchestrator.doctor import examine

    findings = examine(Home.from_environment())
    output.emit({"checks": findings}, as_json=as_format is Format.JSON, text=output.print_findings)
    raise typer.Exit(0 if all(finding["ok"] for finding in findings) else 1)


@config_app.command("schema")
def schema() -> None:
    """JSON Schema of a run file."""
    from orchestrator.config import config_schema

    output.print_json(config_schema())


@db_app.command("upgrade")
def upgrade() -> None:
    """Bring the run database to this program's schema."""
    from orchestrator.store import upgrade_database

    before, after = upgrade_database(Home.from_environment().database_url)
    same = "already at" if before == after else f"upgraded from {before or 'nothing'} to"
    typer.echo(f"{same} {after}")


def _shown(run_id: str, home: Home) -> Show:
    from orchestrator.summary import show

    store = home.store()
    record = store.get_run(run_id)
    path = home.run_folder(record.run_id) / "report.html"
    return show(
        record,
        store.rounds(record.run_id),
        store.events(record.run_id),
        report_path=str(path) if path.exists() else None,
    )
