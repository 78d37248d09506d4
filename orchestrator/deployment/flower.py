"""What every Flower process we start has in common: its environment and its ports."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from strategies.errors import ConfigError, Fault

# Nothing of this may call home, install packages or ask the network for permission.
QUIET: Final = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
# The secret that opens a SuperLink's Control API to other machines, for our SuperLink alone.
DATABASE_VARIABLE: Final = "PERENNIAL_DATABASE"
TOKEN_VARIABLE: Final = "PERENNIAL_OPERATOR_TOKEN"  # noqa: S105 - its name, not the token
_TASK_POLL_SECONDS: Final = "0.2"  # how often a SuperExec asks for work; Flower's default is 1 s


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where a SuperLink listens: a name or an IP address, and a TCP port."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str, *, key: str) -> Address:
        """``host:port``, with an IPv6 address in brackets.

        Raises: ConfigError naming ``key``.
        """
        host, _, port = text.rpartition(":")
        bare = host.removeprefix("[").removesuffix("]")
        if not bare or not port.isdecimal() or not 0 < int(port) < 2**16 or "/" in bare:
            expected = "host:port, such as server.example:8000"
            raise ConfigError("command line", [Fault(key, repr(text), expected)])
        return cls(host=bare, port=int(port))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def flower_environment(flower_home: Path, more: Mapping[str, str]) -> dict[str, str]:
    """The environment of a Flower process: quiet, in a Flower home of its own, our programs found.

    Flower starts its helpers (``flower-superexec`` and the app processes) by name, so the folder
    of this interpreter leads ``PATH``.  Where the run database is and what the operator shows, both
    secret, is passed on in ``more`` alone.
    """
    programs = str(Path(sys.executable).parent)
    secret = (DATABASE_VARIABLE, TOKEN_VARIABLE)
    return {
        **{name: value for name, value in os.environ.items() if name not in secret},
        **QUIET,
        "FLWR_HOME": str(flower_home),
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": _TASK_POLL_SECONDS,
        "PATH": f"{programs}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "PYTHONUNBUFFERED": "1",
        **more,
    }


def a_free_port() -> int:
    """A TCP port that nobody listens on at this moment, on the loopback interface."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
