"""``perennial metrics``: the run database for Prometheus, where no UI is served."""

from __future__ import annotations

import threading
from types import FrameType
from typing import Annotated

import typer
from prometheus_client import CollectorRegistry, start_http_server

from orchestrator.home import Home
from orchestrator.signals import handling
from orchestrator.telemetry import RunCollector
from strategies.errors import ConfigError, Fault


def metrics(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 9464,
) -> None:
    """Serve the run database to Prometheus at /metrics, until SIGTERM or Ctrl-C.

    It needs no run to be under way and may be started before the database answers: that is told as
    perennial_database_up 0. Whoever reaches the port reads it; there is no password.
    """
    home, stop = Home.from_environment(), threading.Event()
    registry = CollectorRegistry()
    registry.register(RunCollector(lambda: home.store().tallies()))
    try:
        server, thread = start_http_server(port, addr=host, registry=registry)
    except OSError as error:
        found = f"{host}:{port} ({error.strerror})"
        fault = Fault("--host, --port", found, "an address that can be listened on")
        raise ConfigError("metrics", [fault]) from None

    def note(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    with handling(note):
        typer.echo(f"metrics at {shown_address(host, server.server_port)}")
        stop.wait()
    server.shutdown()
    server.server_close()
    thread.join()


def shown_address(host: str, port: int) -> str:
    """Where the metrics are, as Prometheus is told."""
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/metrics"
