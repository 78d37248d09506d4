"""TLS at the door: a connection that does not become a secure one is named, not dropped silently.

asyncio closes a connection whose TLS handshake fails without a word.  Who spoke plain text, or did
not trust the certificate, would never be seen on the server; so the handshake is made here.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import Final, cast

from orchestrator.deployment.guard import Say, peer_name

_HANDSHAKE_SECONDS: Final = 20.0
_REASONS: Final = {
    "HTTP_REQUEST": "it spoke plain HTTP, not TLS",
    "WRONG_VERSION_NUMBER": "it did not speak TLS",
    "TLSV1_ALERT_UNKNOWN_CA": "it does not trust our authority (another ca.crt?)",
    "SSLV3_ALERT_BAD_CERTIFICATE": "it does not accept our certificate",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": "it does not accept our certificate",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "it holds our certificate for expired",
}


class Door(asyncio.Protocol):
    """Makes the TLS handshake of one connection, then steps aside for the real protocol."""

    def __init__(
        self, context: ssl.SSLContext, make_inner: Callable[[], asyncio.Protocol], say: Say
    ) -> None:
        self._context, self._make_inner, self._say = context, make_inner, say
        self._early = bytearray()
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        connection = cast("asyncio.Transport", transport)
        connection.pause_reading()  # the first bytes belong to the handshake
        self._task = asyncio.get_running_loop().create_task(self._open(connection))

    def data_received(self, data: bytes) -> None:
        """Bytes that came with the end of the handshake."""
        self._early += data

    async def _open(self, plain: asyncio.Transport) -> None:
        peer, loop = peer_name(plain.get_extra_info("peername")), asyncio.get_running_loop()
        try:
            secured = await loop.start_tls(
                plain,
                self,
                self._context,
                server_side=True,
                ssl_handshake_timeout=_HANDSHAKE_SECONDS,
            )
        except OSError as error:  # ssl.SSLError is one
            self._say(f"refused {peer}: {_reason(error)}")
            plain.close()
            return
        if secured is None:
            return  # closed in the meantime
        inner = self._make_inner()
        secured.set_protocol(inner)
        inner.connection_made(secured)
        if self._early:
            inner.data_received(bytes(self._early))


def _reason(error: OSError) -> str:
    if isinstance(error, ssl.SSLError) and error.reason:
        return _REASONS.get(error.reason, f"no TLS connection ({error.reason})")
    return f"no TLS connection ({str(error) or type(error).__name__})"
