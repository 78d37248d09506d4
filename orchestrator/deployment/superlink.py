"""``python -m orchestrator.deployment.superlink``: Flower's SuperLink behind our door and guard.

Takes the arguments of ``flower-superlink``.  ``PERENNIAL_OPERATOR_TOKEN`` in the environment is the
secret that opens the Control API to other machines.
"""

from __future__ import annotations

import os
import ssl
import sys
from functools import partial
from typing import Any, Final

import uvicorn
from flwr.supercore.http_logging import get_uvicorn_log_config
from flwr.supercore.logger import console_handler
from flwr.superlink.cli.flower_superlink import SuperLinkLifespan, _parse_superlink_lifespan_config
from flwr.superlink.config_loader import SuperLinkLifespanConfig
from flwr.superlink.main import create_app
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from orchestrator.deployment.door import Door
from orchestrator.deployment.flower import TOKEN_VARIABLE
from orchestrator.deployment.guard import Guard

_TURN_AWAY_SECONDS: Final = 5


def serve(config: SuperLinkLifespanConfig, token: str | None) -> None:
    """Serve until SIGTERM."""
    flower = create_app(config, SuperLinkLifespan)
    state = flower.state.linkstate_factory

    def knows(key: bytes) -> bool:
        return state.state().get_node_id_by_public_key(key) is not None

    by_key = config.enable_supernode_auth
    guard = Guard(flower, token, knows if by_key else None, _say, admitting=not by_key)
    uvicorn.run(
        guard,
        host=config.host,
        port=config.port,
        http=_protocol(config),
        loop="asyncio",  # uvloop may read before the handshake is made (door.py)
        log_config=get_uvicorn_log_config(console_handler.level),
        timeout_graceful_shutdown=_TURN_AWAY_SECONDS,
    )


def _protocol(config: SuperLinkLifespanConfig) -> Any:
    """Uvicorn's HTTP protocol, behind TLS where there are certificates.

    Any: uvicorn asks for a class and calls it with its own arguments.
    """
    if config.insecure:
        return "auto"
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(str(config.ssl_certfile), config.ssl_keyfile)

    def make_door(**arguments: Any) -> Door:
        return Door(context, partial(AutoHTTPProtocol, **arguments), _say)

    return make_door


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    serve(_parse_superlink_lifespan_config(), os.environ.pop(TOKEN_VARIABLE, None))
