"""A first look at a SuperLink: is it there, does it speak what we speak, is it who it should be."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path
from typing import Final

from orchestrator.deployment.flower import Address
from strategies.errors import RefusedError, TransportError

_TIMEOUT_SECONDS: Final = 10.0
_MISMATCHES: Final = (
    62,
    64,
)  # OpenSSL: X509_V_ERR_HOSTNAME_MISMATCH, X509_V_ERR_IP_ADDRESS_MISMATCH
_ASK: Final = b"GET /health HTTP/1.1\r\nHost: perennial\r\nConnection: close\r\n\r\n"


def probe(address: Address, root_certificates: Path | None, *, insecure: bool) -> None:
    """Ask a SuperLink for its health, over TLS unless ``insecure``.

    ``root_certificates`` None means the system's authorities.
    Raises: TransportError if nobody answers now, RefusedError for what waiting cannot mend.
    """
    try:
        with socket.create_connection((address.host, address.port), _TIMEOUT_SECONDS) as plain:
            if insecure:
                _ask_in_plain_text(plain, address)
            else:
                with _secured(plain, address, root_certificates) as secured:
                    _require_http(_answer(secured), address)
    except OSError as error:
        reason = error.strerror or str(error)
        raise TransportError(f"no SuperLink answers at {address}: {reason}") from None


def _secured(
    plain: socket.socket, address: Address, root_certificates: Path | None
) -> ssl.SSLSocket:
    try:
        context = ssl.create_default_context(cafile=root_certificates)
    except (ssl.SSLError, OSError) as error:
        raise RefusedError(
            f"--root-certificates: {root_certificates} cannot be read as PEM certificates "
            f"({error.strerror or error}); give the federation's ca.crt"
        ) from None
    try:
        return context.wrap_socket(plain, server_hostname=address.host)
    except ssl.SSLCertVerificationError as error:
        raise RefusedError(_untrusted(error, address, root_certificates)) from None
    except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
        raise
    except ssl.SSLError as error:
        raise RefusedError(
            f"{address} does not speak TLS ({error.reason}); check the port, and whether the "
            "server was started with --insecure"
        ) from None


def _untrusted(
    error: ssl.SSLCertVerificationError, address: Address, root_certificates: Path | None
) -> str:
    if error.verify_code in _MISMATCHES:
        return (
            f"the certificate of {address} was made for other names ({error.verify_message}); use "
            "one of its names, or make a new one with `perennial certs --host`"
        )
    trusted = root_certificates or "the system's certificates"
    return (
        f"the certificate of {address} is not signed by an authority in {trusted} "
        f"({error.verify_message}); give this federation's ca.crt as --root-certificates"
    )


def _ask_in_plain_text(plain: socket.socket, address: Address) -> None:
    try:
        answer = _answer(plain)
    except ConnectionError:
        answer = b""
    if not answer.startswith(b"HTTP/"):
        raise RefusedError(
            f"{address} answers no plain text, so it expects TLS; leave --insecure out and give "
            "--root-certificates and --auth-key"
        )
    _require_http(answer, address)


def _answer(connection: socket.socket) -> bytes:
    connection.sendall(_ASK)
    return connection.recv(64)


def _require_http(answer: bytes, address: Address) -> None:
    """A SuperLink says 200; a proxy before one that is starting says 5xx; nobody else fits."""
    words = answer.split(b"\r\n", 1)[0].split()
    status = int(words[1]) if len(words) > 1 and words[1].isdigit() else 0
    if not words or status >= 500:
        raise TransportError(f"the SuperLink at {address} is not ready yet")
    if status != 200:
        found = b" ".join(words).decode("ascii", "replace")
        raise RefusedError(f"{address} is no SuperLink: its /health answered {found!r}")
