"""The dashboard over a data directory, on a free port of this machine."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from orchestrator.home import Home
from orchestrator.web import WebSettings, create_app

TOKEN = "a-token-of-enough-letters"  # noqa: S105 - of these tests


@contextmanager
def served(home: Home) -> Iterator[str]:
    """Its address; it ends with the context."""
    home.store()
    servers: list[uvicorn.Server] = []
    settings = WebSettings(token=TOKEN, poll_seconds=0.2, closing=lambda: servers[0].should_exit)
    config = uvicorn.Config(
        create_app(home, settings),
        ws="none",
        log_level="warning",
        lifespan="off",
        timeout_graceful_shutdown=3,
    )
    servers.append(uvicorn.Server(config))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=servers[0].run, args=([listening],))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            servers[0].should_exit = True
            thread.join(timeout=30)
