"""``perennial ui`` as people start and end it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys

import httpx
import pytest
from typer.testing import CliRunner

from orchestrator.cli.app import app
from orchestrator.cli.ui import _announcement
from tests.orchestrator.web.conftest import TOKEN


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_says_where_it_is_serves_and_ends_cleanly(home, runs, number, tmp_path):
    (tmp_path / "token").write_text(TOKEN)
    command = [
        sys.executable,
        "-c",
        "from orchestrator.cli import main; main()",
        "ui",
        "--port",
        "0",
    ]
    process = subprocess.Popen(
        [*command, "--token-file", str(tmp_path / "token")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | home.environment() | {"PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    try:
        line = process.stdout.readline()
        address = re.match(r"serving (http://127\.0\.0\.1:\d+)/, actions with the token", line)[1]
        assert httpx.get(f"{address}/healthz").text == "ok\n"
        assert runs[0] in httpx.get(address).text
        with httpx.stream("GET", f"{address}/api/v1/runs/{runs[2]}/stream", timeout=60) as told:
            lines = told.iter_lines()
            assert next(lines).startswith("retry")
            process.send_signal(number)
            assert list(lines)  # what was under way, until the server ended it
        assert process.wait(timeout=60) == 0
        assert TOKEN not in process.stderr.read()
    finally:
        process.kill()
        process.wait()


def test_a_port_that_is_taken_is_named(home, monkeypatch):
    import socket

    for name, value in home.environment().items():
        monkeypatch.setenv(name, value)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        found = CliRunner().invoke(app, ["ui", "--port", port])
    assert "--port 0 takes a free one" in str(found.exception)


def test_an_address_that_others_reach_is_announced():
    assert len(_announcement("127.0.0.1", 8080, acting=False)) == 1
    assert len(_announcement("::1", 8080, acting=False)) == 1
    first, second = _announcement("0.0.0.0", 8080, acting=False)  # noqa: S104
    assert first == "serving http://0.0.0.0:8080/, read-only"
    assert "whoever reaches it can read all runs" in second
