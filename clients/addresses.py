"""Where a warm trainer may be reached: a Unix socket, or a port of this machine with a token."""

from __future__ import annotations

import ipaddress
import os
import socket
import stat
from pathlib import Path
from typing import Final

from strategies.errors import ConfigError, Fault

_UNIX: Final = "unix:"
_LONGEST_PATH: Final = 107  # bytes, by Linux


def is_unix(address: str) -> bool:
    """Whether the address is a Unix socket's."""
    return address.startswith(_UNIX)


def check_address(address: str, token: str | None) -> None:
    """Raises: ConfigError for an address that others than this machine reach, or has no token."""
    if is_unix(address):
        path = address.removeprefix(_UNIX)
        if not path or len(os.fsencode(path)) > _LONGEST_PATH:
            raise _fault(address, f"unix: and a path of 1 to {_LONGEST_PATH} bytes")
        return
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65535 or not _is_loopback(host):
        raise _fault(address, "unix:/path/trainer.sock or a loopback address such as 127.0.0.1:0")
    if not token:
        raise ConfigError(
            "trainer",
            [Fault("token", "none", f"a token for {address}", "give a token file, or use unix:")],
        )


def read_token(path: Path) -> str:
    """The token in a file.

    Raises: ConfigError if the file cannot be read or is empty.
    """
    try:
        token = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            "trainer", [Fault("token-file", str(error), "a text file that can be read")]
        ) from None
    if not token.isascii() or not token.isprintable() or not token:
        raise ConfigError("trainer", [Fault("token-file", str(path), "one line of ASCII in it")])
    return token


def claim_socket(address: str) -> None:
    """Make the place of a Unix socket ready: a folder of this user's, nobody listening there yet.

    Raises: ConfigError if others may write in the folder, or a trainer listens there already.
    """
    path = Path(address.removeprefix(_UNIX))
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = path.parent.stat()
    if found.st_uid != os.getuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        mode = f"owner {found.st_uid}, mode {stat.S_IMODE(found.st_mode):o}"
        raise ConfigError(
            "trainer",
            [Fault(str(path.parent), mode, "a folder that only you write in", "chmod 700 it")],
        )
    if path.exists() and _is_answered(path):
        raise ConfigError("trainer", [Fault("address", address, "one nobody listens on")])
    path.unlink(missing_ok=True)  # left by a trainer that was killed


def release_socket(address: str) -> None:
    """Remove a Unix socket that was listened on."""
    if is_unix(address):
        Path(address.removeprefix(_UNIX)).unlink(missing_ok=True)


def _is_answered(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(str(path)) == 0


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return False


def _fault(address: str, expected: str) -> ConfigError:
    return ConfigError("trainer", [Fault("address", repr(address), expected)])
