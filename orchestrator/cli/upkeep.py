"""``perennial gc`` and ``delete``: what takes room and is not needed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from orchestrator.cli import output
from orchestrator.cli.live import size
from orchestrator.home import Home
from orchestrator.trouble import in_words
from strategies.errors import ConfigError, Fault, StoreError

if TYPE_CHECKING:
    from orchestrator.garbage import Garbage

_LOCK_SECONDS = 60.0


def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say it, remove nothing.")] = False,  # noqa: FBT002
    as_format: Annotated[
        str, typer.Option("--format", metavar="text|json", help="For people, or for programs.")
    ] = "text",
    cache: Annotated[bool, typer.Option("--cache", help="The caches too.")] = False,  # noqa: FBT002
    client: Annotated[
        Path | None, typer.Option(help="Instead, a client machine's --work folder.")
    ] = None,
    idle_days: Annotated[
        float, typer.Option(min=1, help="With --client: days without work in a run.")
    ] = 30.0,
) -> None:
    """Remove what no run needs: blobs, half-written files, client states of completed runs."""
    from orchestrator import garbage

    if as_format not in ("text", "json"):
        raise ConfigError("gc", [Fault("--format", repr(as_format), "text or json")])
    home = Home.from_environment()
    if client is not None:
        if not (client / "clients").is_dir():
            found = f"{client}, without a folder `clients`"
            raise ConfigError("gc", [Fault("--client", found, "a --work folder")])
        shown = _cleared([garbage.idle_states(client, idle_days)], home, dry_run=dry_run)
    else:
        with home.blobs().sweeping(_LOCK_SECONDS) as alone:
            if not alone:
                raise StoreError(
                    f"{home.blobs().folder} was in use for {_LOCK_SECONDS:.0f} s, or its file "
                    "system has no locks; try again when no run is writing a checkpoint"
                )
            parts = [garbage.look(home), *([garbage.cache_of(home)] if cache else [])]
            shown = _cleared(parts, home, dry_run=dry_run)
    output.emit(shown, as_json=as_format == "json", text=_print)


def delete(
    run_id: Annotated[str, typer.Argument(metavar="RUN", help="A run's id, whole.")],
) -> None:
    """Forget a run for good: its record, checkpoints, adapters, report and client states."""
    from orchestrator import garbage

    try:
        gone = garbage.delete(run_id, Home.from_environment())
    except OSError as error:
        raise StoreError(in_words(error, Home.from_environment().folder)) from None
    typer.echo(f"deleted {gone}; `perennial gc` frees what it shared with others")


def _cleared(parts: list[Garbage], home: Home, *, dry_run: bool) -> dict[str, Any]:
    """What there is, told before it is removed."""
    removals = [removal for part in parts for removal in part.removals()]
    try:
        for part in parts if not dry_run else ():
            part.remove(home)
    except OSError as error:
        raise StoreError(in_words(error, home.folder)) from None
    left = [why for part in parts for why in part.left]
    return {"dry_run": dry_run, "removed": removals, "left": left}


def _print(out: Console, shown: Mapping[str, Any]) -> None:
    verb = "would remove" if shown["dry_run"] else "removed"
    for removal in shown["removed"]:
        line = f"{verb} {removal['count']} {removal['what']}, {size(removal['bytes'])}"
        out.print(line, highlight=False)
    for why in shown["left"]:
        out.print(f"left {why}", highlight=False, soft_wrap=True, markup=False)
