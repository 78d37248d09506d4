"""Preflight: what would break a run, found before one is started."""

from __future__ import annotations

import os
import shutil
import socket
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Final, TypedDict

import psutil

from orchestrator.home import Home
from orchestrator.retention import largest_run_bytes
from orchestrator.store import shown_url
from strategies.errors import PerennialError

_MIN_FREE_BYTES: Final = 2 * 10**9
_MIN_MEMORY_BYTES: Final = 4 * 10**9


class Finding(TypedDict):
    """One check: ``detail`` says what was found and, if it is not well, what to do."""

    check: str
    ok: bool
    detail: str


def examine(home: Home) -> list[Finding]:
    """All checks, in the order a run would meet them."""
    checks: dict[str, Callable[[Home], str]] = {
        "python": _python,
        "packages": _packages,
        "data directory": _directory,
        "disk": _disk,
        "memory": _memory,
        "run database": _database,
        "loopback": _loopback,
    }
    return [_finding(name, check, home) for name, check in checks.items()]


def _finding(name: str, check: Callable[[Home], str], home: Home) -> Finding:
    try:
        return Finding(check=name, ok=True, detail=check(home))
    except (PerennialError, OSError) as error:
        return Finding(check=name, ok=False, detail=str(error))


def _python(home: Home) -> str:
    return f"{sys.version.split()[0]} at {sys.executable}"


def _packages(home: Home) -> str:
    names = ("flwr", "torch", "transformers", "peft", "sqlalchemy")
    try:
        found = [f"{name} {version(name)}" for name in names]
    except PackageNotFoundError as error:
        raise PerennialError(f"{error.name} is not installed; reinstall perennial") from None
    return ", ".join([*found, _ray()])


def _ray() -> str:
    """Images of clients go without."""
    try:
        return f"ray {version('ray')}"
    except PackageNotFoundError:
        return "no ray, so no simulations but in-process"


def _directory(home: Home) -> str:
    home.require_writable()
    return f"{home.folder} is writable"


def _disk(home: Home) -> str:
    """Free space against what a run like the newest ones keeps there, and at least 2 GB."""
    free, needed = shutil.disk_usage(home.folder).free, largest_run_bytes(home)
    wanted = max(needed, _MIN_FREE_BYTES)
    of_run = f"; the largest run here keeps {needed / 1e9:.2f} GB" if needed else ""
    if free < wanted:
        raise PerennialError(
            f"{free / 1e9:.1f} GB free at {home.folder}, {wanted / 1e9:.1f} GB wanted{of_run}; "
            "`perennial gc --dry-run` says what can go"
        )
    return f"{free / 1e9:.0f} GB free{of_run}"


def _memory(home: Home) -> str:
    available = psutil.virtual_memory().available
    if available < _MIN_MEMORY_BYTES:
        raise PerennialError(
            f"{available / 1e9:.1f} GB available, 4 GB wanted; close programs or raise "
            "federation.threads_per_client so that fewer clients train at once"
        )
    return f"{available / 1e9:.0f} GB available, {os.cpu_count()} cores"


def _database(home: Home) -> str:
    runs = home.store().list_runs(limit=1)
    newest = f"newest run {runs[0].run_id}" if runs else "no runs yet"
    return f"{shown_url(home.database_url)} answers; schema is current, {newest}"


def _loopback(home: Home) -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return f"a port can be opened (tried {port})"
