"""Flower entry of the server: find or make the run, hand the grid to the engine."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType

from flwr.app import Context
from flwr.app.typing import ConfigScalar
from flwr.serverapp import Grid, ServerApp

from orchestrator.conduct import FLOWER_RUN, INTERRUPTED, conduct, submit
from orchestrator.config import RunConfig, parse_config
from orchestrator.examples import example_config
from orchestrator.flower_transport import FlowerTransport
from orchestrator.home import Home
from orchestrator.signals import handling
from orchestrator.store.base import RunStatus
from strategies.errors import RoundFailedError, RunInterrupted

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run ``run-id`` if the run config names one, else a new run of ``config`` or ``example``."""
    home = Home.from_environment()
    settings: Mapping[str, ConfigScalar] = context.run_config
    where = {FLOWER_RUN: str(context.run_id)}
    run_id = str(settings.get("run-id") or "") or submit(_config(settings), home, where)
    config = parse_config(home.store().get_run(run_id).config, source=f"run {run_id}")
    federation = config.federation
    transport = FlowerTransport(grid, federation.clients, federation.min_clients)
    with _interruptible():
        status = conduct(run_id, config, transport, home)
    reason = home.store().get_run(run_id).reason
    if status is RunStatus.FAILED:
        raise RoundFailedError(reason)
    if status is RunStatus.INTERRUPTED:
        raise RunInterrupted(f"{INTERRUPTED}: {reason} (run {run_id})")


@contextmanager
def _interruptible() -> Iterator[None]:
    """A signal to end interrupts the run, which can be resumed; Flower's handler would fail it.

    Flower raises SIGINT by itself where the SuperLink is gone.
    """
    parent, signals = os.getppid(), (signal.SIGTERM, signal.SIGINT)

    def interrupt(number: int, _frame: FrameType | None) -> None:
        for each in signals:  # it is on its way: a second one would break that off
            signal.signal(each, signal.SIG_IGN)
        if os.getppid() != parent:
            raise RunInterrupted("its SuperLink is gone")
        raise RunInterrupted(f"its server was told to end ({signal.Signals(number).name})")

    with handling(interrupt):
        yield


def _config(settings: Mapping[str, ConfigScalar]) -> RunConfig:
    if text := settings.get("config"):
        return parse_config(json.loads(str(text)), source="run config 'config'")
    return example_config(str(settings.get("example", "digits")))
