"""What every request must be, and what every answer says: host names, headers."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, MutableMapping
from dataclasses import dataclass
from typing import Any, Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
HEADERS: Final = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Frame-Options": "DENY",
}


@dataclass(frozen=True, slots=True)
class Guard:
    """Refuses host names that are not ours, and gives every answer its headers.

    A page of a stranger can point its own name at this machine and would then share our origin; it
    cannot make a browser send a plain address or a name of ours.
    """

    app: ASGIApp
    hosts: Collection[str] = ()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve or refuse one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        host = Headers(scope=scope).get("host", "")
        if is_ours(host, self.hosts):
            await self.app(scope, receive, _with_headers(send))
            return
        refusal = PlainTextResponse(
            f"host {host[:100]!r} is not served here; start `perennial ui` with --allow-host\n",
            status_code=421,
        )
        await refusal(scope, receive, _with_headers(send))


def is_ours(host: str, allowed: Collection[str]) -> bool:
    """Whether a Host header is localhost, a plain address or an allowed name, with any port."""
    name = host.rsplit("]", 1)[0].lstrip("[") if host.startswith("[") else host.partition(":")[0]
    if name.lower() == "localhost" or name.lower() in {each.lower() for each in allowed}:
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _with_headers(send: Send) -> Send:
    async def sending(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers[name] = value
            headers.setdefault("Cache-Control", "no-store")
        await send(message)

    return sending
