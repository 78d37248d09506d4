"""Who may read, who may act, and what a browser is told to allow."""

from __future__ import annotations

import re

import pytest
from starlette.testclient import TestClient

from orchestrator.home import Home
from orchestrator.store.base import RunStatus
from orchestrator.web import WebSettings, create_app
from orchestrator.web.security import POLICY, is_ours
from orchestrator.web.sessions import COOKIE, LASTS_SECONDS, Sessions
from orchestrator.web.settings import read_token
from strategies.errors import ConfigError
from tests.orchestrator.web.conftest import TOKEN

BEARER = {"Authorization": f"Bearer {TOKEN}"}


def log_in(client) -> str:
    """Log the browser in; the CSRF token its pages carry."""
    answer = client.post("/login", data={"token": TOKEN})
    assert answer.status_code == 303
    page = client.get("/").text
    return re.search(r'name="csrf" value="([^"]+)"', page)[1]


def test_every_answer_has_the_headers_that_bind_a_browser(client, runs):
    for path in (
        "/",
        f"/runs/{runs[0]}",
        "/api/v1/runs",
        "/static/style.css",
        "/nowhere",
        "/healthz",
    ):
        headers = client.get(path).headers
        assert headers["content-security-policy"] == POLICY
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert "unsafe" not in headers["content-security-policy"]


@pytest.mark.parametrize(
    ("host", "ours"),
    [
        ("localhost", True), ("localhost:8080", True), ("127.0.0.1:80", True), ("[::1]:80", True),
        ("10.1.2.3:8080", True), ("perennial.example:80", True), ("PERENNIAL.example", True),
        ("evil.example", False), ("localhost.evil.example", False), ("", False),
        ("127.0.0.1.evil.example", False), ("[evil]", False),
    ],
)  # fmt: skip
def test_only_plain_addresses_and_names_of_ours_are_served(host, ours):
    assert is_ours(host, ("perennial.example",)) is ours


def test_a_rebound_name_is_refused_whatever_it_asks_for(client, runs):
    for path in ("/", "/api/v1/runs", "/healthz", f"/api/v1/runs/{runs[0]}/stream"):
        answer = client.get(path, headers={"Host": "evil.example"})
        assert answer.status_code == 421
        assert "--allow-host" in answer.text


ACTIONS = (("POST", "/stop"), ("POST", "/resume"), ("POST", "/tags"), ("DELETE", ""))


@pytest.mark.parametrize(("method", "end"), ACTIONS)
@pytest.mark.parametrize(
    "headers", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {TOKEN}"}]
)
def test_no_action_without_the_token(client, home, runs, method, end, headers):
    before = home.store().get_run(runs[2])
    answer = client.request(
        method, f"/api/v1/runs/{runs[2]}{end}", headers=headers, json={"add": ["x"]}
    )
    assert answer.status_code == 401
    assert home.store().get_run(runs[2]) == before


def test_a_dashboard_without_a_token_is_read_only_whoever_asks(home: Home, runs):
    with TestClient(create_app(home, WebSettings()), base_url="http://localhost") as reading:
        for method, end in ACTIONS:
            answer = reading.request(method, f"/api/v1/runs/{runs[2]}{end}", headers=BEARER)
            assert answer.status_code == 403
            assert "--token-file" in answer.json()["detail"]
        assert reading.post("/login", data={"token": ""}).status_code == 403
        assert reading.post(f"/runs/{runs[2]}/actions", data={"action": "stop"}).status_code == 403
        assert '<form method="post"' not in reading.get(f"/runs/{runs[2]}").text


def test_the_bearer_token_stops_a_run(client, home, runs):
    answer = client.post(f"/api/v1/runs/{runs[2]}/stop", headers=BEARER)
    assert answer.json() == {
        "run_id": runs[2], "status": "stopping", "message": "asked to stop at its next safe point",
    }  # fmt: skip
    assert home.store().get_run(runs[2]).status is RunStatus.STOPPING
    assert client.post(f"/api/v1/runs/{runs[0]}/stop", headers=BEARER).status_code == 409


def test_a_login_gives_a_cookie_that_scripts_and_other_sites_never_see(client):
    answer = client.post("/login", data={"token": TOKEN})
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert TOKEN not in cookie
    assert client.post("/login", data={"token": "wrong"}).status_code == 403


def test_a_form_needs_the_session_and_its_own_token(client, home, runs):
    path, form = f"/runs/{runs[2]}/actions", {"action": "stop"}
    assert client.post(path, data=form).status_code == 401
    csrf = log_in(client)
    assert client.post(path, data=form).status_code == 403
    assert client.post(path, data={**form, "csrf": "guess"}).status_code == 403
    assert home.store().get_run(runs[2]).status is RunStatus.RUNNING
    answer = client.post(path, data={**form, "csrf": csrf})
    assert (answer.status_code, answer.headers["location"]) == (303, f"/runs/{runs[2]}")
    assert home.store().get_run(runs[2]).status is RunStatus.STOPPING


def test_a_cookie_alone_moves_nothing_through_the_api_either(client, home, runs):
    csrf = log_in(client)
    path = f"/api/v1/runs/{runs[2]}/stop"
    assert client.post(path).status_code == 403
    assert client.post(path, headers={"X-CSRF-Token": csrf}).status_code == 200


def test_logging_out_ends_the_session(client, runs):
    csrf = log_in(client)
    cookie = client.cookies[COOKIE]
    assert client.post("/logout", data={"csrf": csrf}).status_code == 303
    client.cookies.set(COOKIE, cookie)
    answer = client.post(f"/runs/{runs[2]}/actions", data={"action": "stop", "csrf": csrf})
    assert answer.status_code == 401


def test_sessions_expire_and_are_bounded():
    now = [0.0]
    sessions = Sessions(token=TOKEN, clock=lambda: now[0])
    first = sessions.login(TOKEN)
    assert sessions.of(first)
    for _ in range(1000):
        sessions.login(TOKEN)
    assert sessions.of(first) is None
    last = sessions.login(TOKEN)
    now[0] = LASTS_SECONDS
    assert sessions.of(last) is None
    assert sessions.login("ž" * 5) is None


def test_a_large_or_odd_form_is_refused(client):
    assert client.post("/login", data={"token": "x" * 20_000}).status_code == 413
    assert client.post("/login", json={"token": TOKEN}).status_code == 415


def test_no_secret_is_in_any_answer(tmp_path, settings):
    """The password of the database and the token, in pages and errors alike."""
    home = Home(
        folder=tmp_path, database_url="postgresql://me:canary-pw@127.0.0.1:1/none?connect_timeout=1"
    )
    app = create_app(home, settings)
    with TestClient(app, base_url="http://localhost", raise_server_exceptions=False) as away:
        for path in ("/", "/api/v1/runs", "/readyz", "/api/v1/health"):
            answer = away.get(path)
            assert answer.status_code in (400, 503)
            assert "canary" not in answer.text + str(answer.headers)
        assert away.get("/healthz").status_code == 200
    assert TOKEN not in repr(settings)
    assert TOKEN not in repr(app.state.sessions)


@pytest.mark.parametrize("text", ["", "short", "two\nlines-of-a-token", "žžžžžžžžžžžžžžžžžžžž"])
def test_a_token_file_must_hold_a_token_worth_the_name(tmp_path, text):
    path = tmp_path / "token"
    path.write_text(text)
    with pytest.raises(ConfigError, match="at least 16 ASCII characters") as caught:
        read_token(path)
    assert not text or text not in str(caught.value)
    with pytest.raises(ConfigError, match="can be read"):
        read_token(tmp_path / "none")
