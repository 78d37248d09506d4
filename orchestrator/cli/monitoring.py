"""``perennial metrics`` and ``mirror``: the run database for Prometheus, and for MLflow."""

from __future__ import annotations

import threading
from types import FrameType
from typing import Annotated

import typer

from orchestrator.home import Home
from orchestrator.signals import handling
from strategies.errors import ConfigError, Fault, PerennialError, TrackingError


def metrics(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 9464,
) -> None:
    """Serve the run database to Prometheus at /metrics, until SIGTERM or Ctrl-C.

    It needs no run to be under way and may be started before the database answers: that is told as
    perennial_database_up 0. Whoever reaches the port reads it; there is no password.
    """
    from prometheus_client import CollectorRegistry, start_http_server

    from orchestrator.telemetry import RunCollector

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


def mirror(
    run_id: Annotated[str, typer.Argument(metavar="RUN", help="A run's id, or `latest`.")],
) -> None:
    """Copy to its tracking server what it lacks of a run: one that ended while it was away."""
    from orchestrator.config import parse_config
    from orchestrator.tracking import Mirror, MlflowServer, require_tracking
    from orchestrator.tracking.server import url_of

    home = Home.from_environment()
    run = home.store().get_run(run_id)
    config = parse_config(run.config, source=f"run {run.run_id}")
    if config.tracking is None:
        fault = Fault(run.run_id, "a run without tracking", 'a run with tracking = "mlflow"')
        raise ConfigError("mirror", [fault])
    require_tracking(config)
    copy = Mirror(
        run_id=run.run_id,
        store=home.store(),
        tracker=MlflowServer(config.tracking),
        report=home.run_folder(run.run_id) / "report.html",
    )
    try:
        copy.finish()
    except PerennialError:
        raise
    except Exception as error:  # MLflow's client raises errors of many libraries
        raise TrackingError(
            f"{url_of(config.tracking)} did not take run {run.run_id}: {error}; see that it "
            "answers, and try again"
        ) from error
    typer.echo(f"mirrored {run.run_id} to {url_of(config.tracking)}")


def shown_address(host: str, port: int) -> str:
    """Where the metrics are, as Prometheus is told."""
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/metrics"
