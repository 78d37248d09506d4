"""Flower entry of the server: find or make the run, hand the grid to the engine."""

from __future__ import annotations

import json
from collections.abc import Mapping

from flwr.app import Context
from flwr.app.typing import ConfigScalar
from flwr.serverapp import Grid, ServerApp

from orchestrator.conduct import conduct, submit
from orchestrator.config import RunConfig, parse_config
from orchestrator.examples import example_config
from orchestrator.flower_transport import FlowerTransport
from orchestrator.home import Home
from orchestrator.store.base import RunStatus
from strategies.errors import RoundFailedError

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run ``run-id`` if the run config names one, else a new run of ``config`` or ``example``."""
    home = Home.from_environment()
    settings: Mapping[str, ConfigScalar] = context.run_config
    run_id = str(settings.get("run-id") or "") or submit(_config(settings), home)
    config = parse_config(home.store().get_run(run_id).config, source=f"run {run_id}")
    federation = config.federation
    transport = FlowerTransport(grid, federation.clients, federation.min_clients)
    if conduct(run_id, config, transport, home) is RunStatus.FAILED:
        raise RoundFailedError(home.store().get_run(run_id).reason)


def _config(settings: Mapping[str, ConfigScalar]) -> RunConfig:
    if text := settings.get("config"):
        return parse_config(json.loads(str(text)), source="run config 'config'")
    return example_config(str(settings.get("example", "digits")))
