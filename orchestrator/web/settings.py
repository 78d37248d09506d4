"""How the dashboard is served."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from strategies.errors import ConfigError, Fault

SHORTEST_TOKEN: Final = 16  # characters


@dataclass(frozen=True, slots=True, kw_only=True)
class WebSettings:
    """``token`` of None serves reading only.

    ``hosts`` are the names, besides localhost and plain addresses, under which it may be called.
    ``closing`` says whether the server is about to end, so that streams end too.
    """

    token: str | None = field(default=None, repr=False)
    hosts: tuple[str, ...] = ()
    closing: Callable[[], bool] = lambda: False
    poll_seconds: float = 1.0
    heartbeat_seconds: float = 15.0


def read_token(path: Path) -> str:
    """The token in a file.

    Raises: ConfigError if it cannot be read, is not one line of ASCII, or is too short to be safe.
    """
    try:
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        fault = Fault("--token-file", str(error), "a text file that can be read")
        raise ConfigError("ui", [fault]) from None
    if not (token.isascii() and token.isprintable()) or len(token) < SHORTEST_TOKEN:
        expected = f"one line of at least {SHORTEST_TOKEN} ASCII characters"
        hint = "make one: python -c 'import secrets; print(secrets.token_urlsafe())'"
        raise ConfigError("ui", [Fault("--token-file", f"another text in {path}", expected, hint)])
    return token
