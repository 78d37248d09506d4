"""Runs mirrored to a tracking server; the run database stays the source."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from orchestrator.config import RunConfig
from orchestrator.store.base import RunStore
from orchestrator.tracking.mirror import Mirror
from orchestrator.tracking.server import URL_VARIABLE, MlflowServer, url_of
from strategies.errors import ConfigError, Fault

__all__ = ["Mirror", "MlflowServer", "mirrored", "require_tracking"]

_LAST_SECONDS: Final = 60.0


def require_tracking(config: RunConfig) -> None:
    """See that a run that asks to be tracked can be from here.

    Raises: ConfigError.
    """
    if config.tracking is None:
        return
    faults = list[Fault]()
    if find_spec("mlflow") is None:
        hint = "run `pip install 'perennial[mlflow]'`, or remove tracking"
        faults.append(Fault("tracking", "'mlflow'", "MLflow's library, which is not here", hint))
    if not url_of(config.tracking):
        hint = f'set tracking.url = "http://HOST:5000" or {URL_VARIABLE}'
        faults.append(Fault("tracking.url", "nothing", "an MLflow server", hint))
    if faults:
        raise ConfigError(config.name, faults)


@contextmanager
def mirrored(run_id: str, config: RunConfig, store: RunStore, report: Path) -> Iterator[None]:
    """While open, what the run commits is copied to its tracking server, if it has one.

    A server or a library that is missing is put on record and changes nothing about the run.
    """
    if config.tracking is None:
        yield
        return
    tracker = MlflowServer(config.tracking)
    mirror = Mirror(run_id=run_id, store=store, tracker=tracker, report=report)
    mirror.start()
    try:
        yield
    finally:
        mirror.close(_LAST_SECONDS)
