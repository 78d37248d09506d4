"""Passwords, tokens and keys are shown nowhere: canaries in, everything that comes out searched."""

from __future__ import annotations

import logging
import os
import re
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from clients.trainer_client import TrainerClient
from clients.trainer_service import Guard as TrainerGuard
from clients.trainer_service import serve
from orchestrator.cli.connecting import connection
from orchestrator.deployment.control import Connection, Control
from orchestrator.deployment.flower import Address, flower_environment
from orchestrator.deployment.guard import Guard
from orchestrator.deployment.keys import load_node_key, load_public_key, load_tls_key
from orchestrator.home import Home
from strategies.errors import ConfigError, PerennialError, TransportError
from strategies.types import ClientId
from strategies.wire import decode_result, encode_recipe
from tests.clients.trainers import Scripted
from tests.conftest import REPOSITORY, TINY

PASSWORD, OPERATOR, TRAINER, KEY = (
    f"canary-{name}-9b1d" for name in ("password", "operator", "trainer", "key")
)
CANARIES = (PASSWORD, OPERATOR, TRAINER, KEY)


def leaks(text: str | bytes, but: str = "") -> list[str]:
    data = text.encode() if isinstance(text, str) else text
    return [canary for canary in CANARIES if canary != but and canary.encode() in data]


def files_under(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def command_lines() -> list[bytes]:
    """Of every process there is, as anybody on the machine may read them."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(entry.read_bytes())
        except OSError:
            continue
    return found


class Watched:
    """A command run to its end while the process table is looked at."""

    def __init__(self, folder: Path, *arguments: str, **variables: str) -> None:
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("PERENNIAL_")},
            "PYTHONPATH": str(REPOSITORY), "PERENNIAL_HOME": str(folder / "home"),
            "PERENNIAL_OPERATOR_TOKEN": OPERATOR, "HF_HUB_OFFLINE": "1", **variables,
        }  # fmt: skip
        process = subprocess.Popen(
            [sys.executable, "-c", "from orchestrator.cli import main; main()", *arguments],
            cwd=folder, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        self.seen: list[str] = []
        while process.poll() is None:
            self.seen += [leak for line in command_lines() for leak in leaks(line)]
            time.sleep(0.5)
        self.output = process.stdout.read() if process.stdout else b""
        self.code = process.returncode


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="needs Linux's /proc")
def test_a_run_to_its_end_shows_no_secret(tmp_path):
    import tomli_w

    (tmp_path / "tiny.toml").write_text(tomli_w.dumps(TINY))
    (tmp_path / "operator.token").write_text(OPERATOR)
    commands = ("run tiny.toml", "show latest", "show latest --format json", "runs", "doctor")
    for command in commands:
        done = Watched(tmp_path, *command.split())
        assert done.code == 0, done.output
        assert (leaks(done.output), done.seen) == ([], [])
    written = files_under(tmp_path / "home")
    assert any(name.endswith("report.html") for name in written)
    assert any("/blobs/" in name for name in written)
    assert {name: leaks(data) for name, data in written.items() if leaks(data)} == {}
    rows = "\n".join(sqlite3.connect(tmp_path / "home" / "perennial.db").iterdump())
    assert "tiny" in rows
    assert leaks(rows) == []


@pytest.mark.slow
def test_a_database_that_is_away_is_named_without_its_password(tmp_path):
    pytest.importorskip("psycopg")
    url = f"postgresql://operator:{PASSWORD}@127.0.0.1:1/runs?sslpassword={KEY}"
    for arguments in (("doctor",), ("db", "upgrade")):
        done = Watched(tmp_path, *arguments, PERENNIAL_DATABASE=url)
        assert b"127.0.0.1" in done.output, done.output
        assert (leaks(done.output), done.seen) == ([], [])
    assert {n: leaks(d) for n, d in files_under(tmp_path).items() if leaks(d)} == {}


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://u:{PASSWORD}@[::1/x", f"postgres//u:{PASSWORD}@host/x",
        f"nonsense+driver://u:{PASSWORD}@host/x", f"mysql://u:{PASSWORD}@host/x",
        f"postgresql://u:a@{PASSWORD}@host/x",
    ],
)  # fmt: skip
def test_an_address_that_is_none_is_refused_without_its_password(url, tmp_path):
    home = Home(folder=tmp_path, database_url=url)
    assert leaks(repr(home)) == []
    with pytest.raises(PerennialError) as caught:
        home.store()
    assert leaks(str(caught.value)) == []
    assert leaks(repr(caught.value.__cause__)) == []


def test_values_that_hold_a_secret_do_not_show_it():
    roots = Connection(
        address=Address.parse("127.0.0.1:1", key="--on"), root_certificates=None, insecure=True,
        token=OPERATOR,
    )  # fmt: skip
    shown = [
        roots, TrainerClient("127.0.0.1:1", TRAINER), TrainerGuard(TRAINER),
        Guard(None, OPERATOR, None, print), Home(folder=Path(), database_url=PASSWORD),  # type: ignore[arg-type]
    ]  # fmt: skip
    assert leaks(repr(shown)) == []


def test_the_operators_token_is_in_no_error(tmp_path):
    token = tmp_path / "operator.token"
    token.write_text(OPERATOR)
    reached = connection("127.0.0.1:1", None, token, insecure=True)
    assert reached.token == OPERATOR
    with pytest.raises(TransportError) as caught:
        Control.open(reached)
    assert leaks(str(caught.value)) == []


def test_the_trainers_token_is_in_no_answer_and_no_log(caplog):
    caplog.set_level(logging.DEBUG)
    serving = serve(Scripted, "127.0.0.1:0", token=TRAINER, max_message_bytes=2**20)
    try:
        client = TrainerClient(serving.address, PASSWORD, recovery_seconds=5.0)
        answer = client.answer(ClientId("client-0"), encode_recipe("{}", ()))
        failure = decode_result(answer)
        assert "token" in failure.detail
        with pytest.raises(TransportError) as caught:
            client.status()
    finally:
        serving.stop(0.1)
    assert leaks(answer) == leaks(str(caught.value)) == leaks(caplog.text) == []


def node_key(path: Path) -> object:
    return load_node_key(path, key="--auth-key")


BLOCK = "-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n"


@pytest.mark.parametrize("load", [load_tls_key, load_public_key, node_key])
@pytest.mark.parametrize("form", ["{}", BLOCK])
def test_a_damaged_key_file_is_not_quoted(load, form, tmp_path):
    path = tmp_path / "damaged.pem"
    path.write_text(form.format(KEY))
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert leaks(str(caught.value)) == []
    assert str(path) in str(caught.value)


def test_processes_of_flower_are_not_handed_what_they_do_not_need(monkeypatch, tmp_path):
    monkeypatch.setenv("PERENNIAL_DATABASE", PASSWORD)
    monkeypatch.setenv("PERENNIAL_OPERATOR_TOKEN", OPERATOR)
    plain = flower_environment(tmp_path, {"PERENNIAL_HOME": str(tmp_path)})
    assert leaks(repr(plain)) == []
    own = flower_environment(tmp_path, {"PERENNIAL_DATABASE": PASSWORD})
    assert own["PERENNIAL_DATABASE"] == PASSWORD


# The repository itself.

TOKENS = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----\s+[A-Za-z0-9+/=]{40}"
    r"|AKIA[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{30}|github_pat_[A-Za-z0-9_]{40}|hf_[A-Za-z0-9]{30}"
    r"|sk-[A-Za-z0-9]{32}|xox[baprs]-[0-9A-Za-z-]{20}|eyJ[A-Za-z0-9_-]{20,}\.eyJ[A-Za-z0-9_-]{20,}"
    r"|(?i:(?:token|secret|password|passwd|api_?key)\"?\s*[:=]\s*[\"'][0-9a-f]{32,}[\"'])"
    r"|(?i:postgres(?:ql)?://[^:/\s]+:[A-Za-z0-9+/_-]{16,}@)"
)


def tracked() -> list[Path]:
    done = subprocess.run(
        ["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip("no git here")
    return [REPOSITORY / os.fsdecode(name) for name in done.stdout.split(b"\0") if name]


def test_no_committed_file_holds_a_key_or_a_token():
    paths = [path for path in tracked() if path.is_file()]
    assert len(paths) > 300
    found = {
        str(path): match.group()[:30]
        for path in paths
        if (match := TOKENS.search(path.read_text(encoding="utf-8", errors="replace")))
    }
    assert found == {}
    assert [p for p in paths if p.suffix in (".pem", ".key", ".token", ".p12", ".env")] == []


@pytest.mark.parametrize(
    "text",
    [
        "-----BEGIN EC PRIVATE " + "KEY-----\n" + "M" * 64, "ghp_" + "a1" * 18, "hf_" + "a1" * 17,
        "token = '" + "0f" * 32 + "'", "AKIA" + "A1" * 8, "postgresql://me:" + "aB3" * 6 + "@h/x",
    ],
)  # fmt: skip
def test_the_search_finds_what_it_looks_for(text):
    assert TOKENS.search(text)
