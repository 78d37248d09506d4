"""Who may ask a SuperLink for what, and a line in its log for everybody who was refused.

Flower serves nodes, operators and its own helpers on one port, and checks node keys only: whoever
reaches the port could submit programs or register a key of their own.  Here nodes may use the
Fleet API; everything else is for this machine, and for submitting and watching runs from another
machine one needs the operator's token.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import ipaddress
import json
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from orchestrator.deployment.flower import Address
from orchestrator.deployment.keys import fingerprint

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Say = Callable[[str], None]

# Asked by our own server once it has registered the nodes.
NODES_ADMITTED: Final = "/perennial/nodes-admitted"
_FOR_ALL: Final = ("/health",)
_FLEET: Final = "/v1/fleet/"
_CONTROL: Final = "/v1/control/"
_ENTRANCES: Final = ("/v1/fleet/activate-node", "/v1/fleet/register-node")
_KEY_HEADER: Final = b"flwr-public-key"
_NODE_ACTIVATION_FAILED: Final = (
    2004  # Flower's number for it; a SuperNode prints our words with it
)


@dataclass(slots=True)
class Guard:
    """An ASGI application before Flower's.

    ``knows`` says whether a node key, in PEM, is registered; None where nodes need no key.  While
    not ``admitting``, nodes are told to come back: a SuperLink that was started again has yet to
    be told its nodes, and a node that it turned away for good would not.
    """

    app: App
    token: str | None = field(repr=False)
    knows: Callable[[bytes], bool] | None
    say: Say
    admitting: bool = True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if scope["path"] == NODES_ADMITTED and _is_local(scope):
            self.admitting = True
            await _answer(send, 200, 0, "nodes may enter")
            return
        if scope["path"] in _ENTRANCES and not self.admitting:
            await _answer(send, 503, 0, "the nodes are being registered; come back")
            return
        refusal = self._refusal(scope)
        if refusal:
            status, code, reason = refusal
            self.say(f"refused {peer_name(scope.get('client'))}: {reason}")
            await _answer(send, status, code, reason)
        elif scope["path"].startswith(_FLEET):
            await self.app(scope, receive, self._reporting(scope, send))
        else:
            await self.app(scope, receive, send)

    def _refusal(self, scope: Scope) -> tuple[int, int, str] | None:
        """HTTP status, Flower's error code and the reason; None for whoever may pass."""
        path = scope["path"]
        if path in _FOR_ALL:
            return None
        if path.startswith(_FLEET):
            return self._stranger(scope) if path in _ENTRANCES else None
        if _is_local(scope) or (path.startswith(_CONTROL) and self._has_token(scope)):
            return None
        if path.startswith(_CONTROL):
            return 401, 0, f"{path} from another machine needs the operator's token"
        return 403, 0, f"{path} is for this machine alone"

    def _stranger(self, scope: Scope) -> tuple[int, int, str] | None:
        if self.knows is None:
            return None
        key = _node_key(scope)
        if key is not None and self.knows(key[0]):
            return None
        who = f"unknown node key {fingerprint(key[1])}" if key else "a node without a readable key"
        return 412, _NODE_ACTIVATION_FAILED, who

    def _has_token(self, scope: Scope) -> bool:
        given = _header(scope, b"authorization") or b""
        expected = f"Bearer {self.token}".encode()
        return self.token is not None and hmac.compare_digest(given, expected)

    def _reporting(self, scope: Scope, send: Send) -> Send:
        """``send``, with a line for every answer that turns a node away."""
        statuses = (401, 412) if scope["path"] in _ENTRANCES else (401,)

        async def watched(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start" and message["status"] in statuses:
                key = _node_key(scope)
                who = f"node key {fingerprint(key[1])}" if key else "a node without a readable key"
                peer = peer_name(scope.get("client"))
                self.say(f"refused {peer}: {who}, {scope['path']} answered {message['status']}")
            await send(message)

        return watched


def peer_name(client: tuple[str, int] | None) -> str:
    """``address:port`` of the other end."""
    if not client:
        return "an unknown address"
    host, port = client[:2]
    return str(Address(host=host, port=port))


def _is_local(scope: Scope) -> bool:
    """Whether the other end is this machine: loopback, or the very address that was called."""
    client, server = scope.get("client"), scope.get("server")
    if not client:
        return False
    try:
        address = ipaddress.ip_address(client[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback or bool(server and client[0] == server[0])


def _header(scope: Scope, name: bytes) -> bytes | None:
    return next((value for key, value in scope["headers"] if key == name), None)


def _node_key(scope: Scope) -> tuple[bytes, ec.EllipticCurvePublicKey] | None:
    """The key a node says it has; its signature is Flower's to check."""
    try:
        pem = base64.b64decode(_header(scope, _KEY_HEADER) or b"", validate=True)
        key = load_pem_public_key(pem)
    except (binascii.Error, ValueError):
        return None
    return (pem, key) if isinstance(key, ec.EllipticCurvePublicKey) else None


async def _answer(send: Send, status: int, code: int, reason: str) -> None:
    body = json.dumps({"code": code, "detail": reason}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
