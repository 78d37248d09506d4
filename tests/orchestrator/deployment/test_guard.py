"""Who may ask for what: nodes for the fleet, this machine for all, a token for control."""

from __future__ import annotations

import asyncio
import base64
import json

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from orchestrator.deployment.guard import NODES_ADMITTED, Guard
from orchestrator.deployment.keys import fingerprint, pem_of

KNOWN, UNKNOWN = (ec.generate_private_key(ec.SECP384R1()).public_key() for _ in range(2))
TOKEN = "secret"  # noqa: S105 - a test's
HERE, THERE = ("127.0.0.1", 5000), ("203.0.113.9", 5000)


def ask(path, client=THERE, *, key=None, token=None, answers=200, auth=True):
    """Status, body, and what the guard said; the application behind it answers ``answers``."""
    said, sent = [], []

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": answers, "headers": []})
        await send({"type": "http.response.body", "body": b"flower"})

    async def send(message):
        sent.append(message)

    headers = []
    if key:
        headers.append((b"flwr-public-key", base64.b64encode(pem_of(key))))
    if token:
        headers.append((b"authorization", f"Bearer {token}".encode()))
    scope = {
        "type": "http",
        "path": path,
        "client": client,
        "server": ("192.0.2.1", 8000),
        "headers": headers,
    }
    knows = (lambda pem: pem == pem_of(KNOWN)) if auth else None
    asyncio.run(Guard(app, TOKEN, knows, said.append)(scope, None, send))
    return sent[0]["status"], sent[1]["body"], said


@pytest.mark.parametrize("client", [HERE, ("::1", 1), ("::ffff:127.0.0.1", 1), ("192.0.2.1", 1)])
@pytest.mark.parametrize("path", ["/v1/control/start-run", "/v1/runtime/acquire-task", "/docs"])
def test_this_machine_may_ask_for_everything(path, client):
    assert ask(path, client) == (200, b"flower", [])


@pytest.mark.parametrize("token", [None, "secrets", "Secret", ""])
def test_control_from_elsewhere_needs_the_token(token):
    status, _, said = ask("/v1/control/register-node", token=token)
    assert status == 401
    assert said == [
        "refused 203.0.113.9:5000: /v1/control/register-node from another machine needs the "
        "operator's token"
    ]
    assert ask("/v1/control/register-node", token=TOKEN)[0] == 200


@pytest.mark.parametrize("path", ["/v1/runtime/acquire-task", "/v1/responses", "/docs", "/"])
def test_flowers_own_helpers_are_for_this_machine_even_with_the_token(path):
    assert ask(path, token=TOKEN)[0] == 403


def test_health_is_for_all():
    assert ask("/health") == (200, b"flower", [])


def test_a_known_key_may_enter_and_an_unknown_one_is_named():
    assert ask("/v1/fleet/activate-node", key=KNOWN) == (200, b"flower", [])
    status, body, said = ask("/v1/fleet/activate-node", key=UNKNOWN)
    name = fingerprint(UNKNOWN)
    assert status == 412
    assert json.loads(body) == {"code": 2004, "detail": f"unknown node key {name}"}
    assert said == [f"refused 203.0.113.9:5000: unknown node key {name}"]


def test_no_key_or_a_broken_one_does_not_enter():
    for path in ("/v1/fleet/activate-node", "/v1/fleet/register-node"):
        assert ask(path)[0] == 412


def test_without_node_keys_anybody_enters():
    assert ask("/v1/fleet/register-node", auth=False)[0] == 200


def test_whom_flower_turns_away_is_named():
    _, _, said = ask("/v1/fleet/pull-messages", key=KNOWN, answers=401)
    assert said == [
        f"refused 203.0.113.9:5000: node key {fingerprint(KNOWN)}, /v1/fleet/pull-messages "
        "answered 401"
    ]
    assert ask("/v1/fleet/pull-messages", key=KNOWN, answers=412)[2] == []


def test_the_words_are_those_that_flower_shows_a_node():
    from flwr.supercore.error import ApiErrorCode, FlowerError

    _, body, _ = ask("/v1/fleet/activate-node", key=UNKNOWN)
    error = FlowerError.from_json(body.decode())
    assert error.code == ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED
    assert error.message == f"unknown node key {fingerprint(UNKNOWN)}"


def test_nodes_are_asked_to_come_back_until_they_have_been_registered():
    said, sent = [], []

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message):
        sent.append(message.get("status"))

    guard = Guard(app, TOKEN, lambda pem: pem == pem_of(KNOWN), said.append, admitting=False)

    def status(path, client, key=KNOWN):
        sent.clear()
        headers = [(b"flwr-public-key", base64.b64encode(pem_of(key)))]
        scope = {"type": "http", "path": path, "client": client, "headers": headers}
        asyncio.run(guard(scope, None, send))
        return sent[0]

    assert status("/v1/fleet/activate-node", THERE) == 503
    assert status("/v1/fleet/activate-node", THERE, UNKNOWN) == 503
    assert status("/v1/control/register-node", HERE) == 200
    assert status(NODES_ADMITTED, THERE) == 403
    assert status("/v1/fleet/activate-node", THERE) == 503
    assert status(NODES_ADMITTED, HERE) == 200
    assert status("/v1/fleet/activate-node", THERE) == 200
    assert status("/v1/fleet/activate-node", THERE, UNKNOWN) == 412
