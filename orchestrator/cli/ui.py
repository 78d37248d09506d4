"""``perennial ui``: the dashboard, served from this process."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
import uvicorn

from orchestrator.cli import output
from orchestrator.home import Home
from orchestrator.signals import handling
from strategies.errors import ConfigError, Fault

_GRACE_SECONDS = 3


class Server(uvicorn.Server):
    """uvicorn's, without its handling of signals: it would raise them again once it has ended."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Left to ``ui``."""
        yield

    def end(self, _number: int, _frame: FrameType | None) -> None:
        """Finish what is under way, and stop."""
        self.should_exit = True


def ui(
    host: Annotated[
        str, typer.Option(help="Address to serve at; beyond this machine others can read all runs.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8080,
    token_file: Annotated[
        Path | None,
        typer.Option(help="Who has this file's token may stop, resume, tag and delete runs."),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(help="A name by which browsers may call it, besides localhost; repeat it."),
    ] = None,
) -> None:
    """Serve the dashboard: runs as they go, comparisons, clients, and a JSON API.

    Read-only without --token-file. Ctrl-C ends it; runs go on.
    """
    from orchestrator.web import WebSettings, create_app
    from orchestrator.web.settings import read_token

    home = Home.from_environment()
    home.store()  # says what is wrong with the database before anybody asks
    token = read_token(token_file) if token_file else None
    serving: list[Server] = []
    settings = WebSettings(
        token=token,
        hosts=tuple(allow_host or ()),
        closing=lambda: any(server.should_exit for server in serving),
    )
    config = uvicorn.Config(
        create_app(home, settings),
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_GRACE_SECONDS,
        lifespan="off",
    )
    server = Server(config)
    serving.append(server)
    with _bound(host, port) as listening:
        for line in _announcement(host, listening.getsockname()[1], acting=token is not None):
            output.saying(output.console())(line)
        with handling(server.end):
            server.run(sockets=[listening])


def _bound(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises: ConfigError if there is none to be had.
    """
    try:
        kind = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listening = socket.create_server(kind[4][:2], family=kind[0])
    except OSError as error:
        found = f"{host}:{port}, {error.strerror or error}"
        hint = "another program may have the port; --port 0 takes a free one"
        expected = "an address of this machine with a free port"
        raise ConfigError("ui", [Fault("--host, --port", found, expected, hint)]) from None
    return listening


def _announcement(host: str, port: int, *, acting: bool) -> list[str]:
    shown = f"[{host}]" if ":" in host else host
    lines = [
        f"serving http://{shown}:{port}/, " + ("actions with the token" if acting else "read-only")
    ]
    if not _is_loopback(host):
        lines.append(
            f"{host} is reachable from other machines: whoever reaches it can read all runs"
        )
    return lines


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
