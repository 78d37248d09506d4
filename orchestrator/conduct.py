"""A run's way through a transport, from a validated config to a report on disk."""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from orchestrator.config import RunConfig
from orchestrator.digest import Digest
from orchestrator.engine import Engine
from orchestrator.home import Home
from orchestrator.owners import described
from orchestrator.report import RepliesSeen, render_report
from orchestrator.stopping import is_led
from orchestrator.store.base import UNDER_WAY, RunRecord, RunStatus, RunStore
from orchestrator.summary import show_without_replies
from orchestrator.tracking import mirrored, require_tracking
from orchestrator.transport import Transport
from orchestrator.trouble import in_words
from strategies.errors import ConfigError, Fault, StoreError

log = logging.getLogger(__name__)

_REPORTED_PACKAGES: Final = (
    "torch", "transformers", "peft", "flwr", "ray", "numpy", "scipy", "safetensors",
)  # fmt: skip

# How `perennial run --on` finds the run that a ServerApp has made, and learns how it ended.
FLOWER_RUN: Final = "flower_run"
INTERRUPTED: Final = "interrupted"


def submit(config: RunConfig, home: Home, where: Mapping[str, str] | None = None) -> str:
    """Enter a new run into the database; its id.  ``where`` is recorded with its environment.

    Raises: ConfigError if the run is to be tracked and cannot be from here.
    """
    require_tracking(config)
    record = home.store().create_run(
        name=config.name,
        config=config.model_dump(mode="json"),
        config_digest=config.digest(),
        code_version=code_version(),
        environment={
            "python": platform.python_version(),
            "platform": platform.platform(),
            **{name: _version(name) for name in _REPORTED_PACKAGES},
            **(where or {}),
        },
    )
    return record.run_id


def reclaim(run_id: str, store: RunStore) -> RunRecord:
    """The run, ready to be continued from its last commit.

    It was interrupted, has failed of something that may be mended by now, was never begun, or was
    left behind by an orchestrator that is gone: at once if that was a process of this machine, else
    when its lease is over.
    Raises: ConfigError if it is completed or somebody still holds its lease.
    """
    record = store.get_run(run_id)
    if record.status in UNDER_WAY and not is_led(record):
        return _interrupted(record, store, "its orchestrator is gone")
    if record.status is RunStatus.FAILED:
        return _interrupted(record, store, f"taken up again; it had failed: {record.reason}")
    if record.status in (RunStatus.CREATED, RunStatus.INTERRUPTED):
        return record
    found, expires = f"a {record.status} run", record.lease_expires_at
    if record.status in UNDER_WAY and expires:
        holder = described(record.lease_owner or "nobody")
        found += f" whose lease lasts until {expires:%H:%M:%S} UTC, held by {holder}"
    expected = "an interrupted or failed run; see `perennial runs`"
    raise ConfigError("resume", [Fault(record.run_id, found, expected)])


def require_simulated(record: RunRecord) -> None:
    """See that a run was begun on simulated clients: those of another federation hold other data.

    Raises: ConfigError.
    """
    if flower_run := record.environment.get(FLOWER_RUN):
        found = f"{record.run_id}, begun on a federation (Flower run {flower_run})"
        raise ConfigError("resume", [Fault("run", found, "--on HOST:PORT of its SuperLink")])


def _interrupted(record: RunRecord, store: RunStore, reason: str) -> RunRecord:
    # It may be asked to stop in this moment, which changes nothing.
    expected = UNDER_WAY if record.status in UNDER_WAY else (record.status,)
    return store.transition(record.run_id, RunStatus.INTERRUPTED, expected=expected, reason=reason)


def conduct(run_id: str, config: RunConfig, transport: Transport, home: Home) -> RunStatus:
    """Execute a submitted run and write its report, however it ends.

    A report that cannot be written is named in the log and changes nothing about the run.
    """
    store, folder = home.store(), home.run_folder(run_id)
    engine = Engine(
        run_id=run_id,
        config=config,
        transport=transport,
        store=store,
        blobs=home.blobs(),
        folder=folder,
    )
    report = folder / "report.html"
    with mirrored(run_id, config, store, report):
        try:
            return engine.execute()
        finally:
            _report(run_id, store, report)


def _report(run_id: str, store: RunStore, path: Path) -> None:
    try:
        write_report(run_id, store, path)
    except (StoreError, OSError) as error:
        why = in_words(error, path) if isinstance(error, OSError) else str(error)
        log.warning("no report of run %s: %s; `perennial report` writes it later", run_id, why)


def write_report(run_id: str, store: RunStore, path: Path) -> None:
    """One self-contained HTML file about the run as it stands."""
    run, seen = store.get_run(run_id), RepliesSeen()
    digest = Digest.of(run, seen.passing(store.each_round(run.run_id)))
    shown = show_without_replies(digest, store.events(run.run_id), report_path=str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        page = render_report(shown, seen, generated_at=datetime.now(UTC))
        temporary.write_text(page, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def code_version() -> str:
    """The version of this program."""
    return _version("perennial")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
