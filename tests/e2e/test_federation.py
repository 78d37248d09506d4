"""A federation of real processes on loopback: SuperLink, SuperNodes, TLS and node keys."""

from __future__ import annotations

import re

import pytest

from orchestrator.deployment.keys import fingerprint, load_public_key
from orchestrator.home import Home
from orchestrator.store.base import RunStatus
from tests.conftest import REPOSITORY
from tests.e2e.federation import Command, Loopback, eventually

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

# What `perennial client` asks of a trainer, without a model, where nothing is trained.
FAKE_TRAINER = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
print("trainer listening on", sys.argv[sys.argv.index("--address") + 1], flush=True)
while True:
    time.sleep(0.1)
"""
WITH_FAKE_TRAINER = (
    "import orchestrator.deployment.client as c; c.TRAINER_MODULE = 'fake_trainer'; "
    "from orchestrator.cli import main; main()"
)
SHORT = (
    "federation.clients=2",
    "stream.classes_per_task=5",
    "learning.rounds_per_task=1",
    "learning.local_steps=2",
    "model.pretext.steps=5",
)


@pytest.fixture
def fake_trainer(loopback):
    """The clients of ``loopback`` start the fake in their trainer's place."""
    (loopback.folder / "fake_trainer.py").write_text(FAKE_TRAINER)
    loopback.code = WITH_FAKE_TRAINER


def test_a_run_on_two_clients_with_tls_and_node_keys(loopback):
    loopback.make_certificates(2)
    server = loopback.server()
    clients = [loopback.client(number, 2) for number in range(2)]
    for client in clients:
        client.wait_for(rf"connected to {loopback.address} · trainer warm")
    settings = [word for value in SHORT for word in ("--set", value)]
    run = loopback.start(
        "run", REPOSITORY / "examples" / "digits.toml", *settings,
        "--on", loopback.address, "--root-certificates", loopback.certs / "ca.crt",
    )  # fmt: skip
    assert run.ends(500) == 0, f"{run.output}\n{loopback.log.read_text()[-3000:]}"
    assert "completed" in run.output
    assert "task 2 of 2" in run.output

    folder = loopback.folder / "home"
    home = Home(folder=folder, database_url=f"sqlite:///{folder / 'perennial.db'}")
    (record,) = home.store().list_runs()
    assert record.status is RunStatus.COMPLETED
    answered = [reply for step in home.store().rounds(record.run_id) for reply in step.replies]
    assert {reply.client_id for reply in answered} == {"client-0", "client-1"}
    assert all(reply.status == "ok" for reply in answered)

    clients[0].wait_for("5 answers")
    assert [client.stop() for client in clients] == [0, 0], clients[0].output
    assert server.stop() == 0, server.output
    assert eventually(lambda: not loopback.processes()), loopback.processes()


@pytest.mark.usefixtures("fake_trainer")
def test_who_may_not_take_part_is_told_why_and_named_by_the_server(loopback, tmp_path):
    loopback.make_certificates(2)
    other = Loopback(tmp_path / "other", port=loopback.port, code=loopback.code)
    other.folder.mkdir()
    other.make_certificates(2)
    server = loopback.server()

    stranger = loopback.client(0, 2, auth_key=other.certs / "nodes" / "client-0.key")
    assert stranger.ends() == 1
    key = fingerprint(load_public_key(other.certs / "nodes" / "client-0.pub"))
    assert f"does not know this node's key {key}" in flat(stranger)
    server.wait_for(rf"refused 127\.0\.0\.1:\d+: unknown node key {re.escape(key)}")

    doubting = loopback.client(0, 2, root_certificates=other.certs / "ca.crt", work=tmp_path / "c3")
    assert doubting.ends() == 1
    assert "is not signed by an authority in" in flat(doubting)
    server.wait_for(r"refused 127\.0\.0\.1:\d+: it does not trust our authority")

    plain = loopback.plain_client(1, 2)
    assert plain.ends() == 1
    assert "answers no plain text, so it expects TLS" in flat(plain)
    server.wait_for(r"refused 127\.0\.0\.1:\d+: it spoke plain HTTP, not TLS")

    assert server.process.poll() is None
    assert "unknown node key" in loopback.log.read_text()


@pytest.mark.usefixtures("fake_trainer")
def test_a_key_taken_from_the_folder_turns_its_node_away(loopback):
    loopback.make_certificates(1)
    server = loopback.server()
    client = loopback.client(0, 1)
    client.wait_for("connected to")
    (loopback.certs / "nodes" / "client-0.pub").unlink()
    server.wait_for("node client-0: key withdrawn")
    assert client.ends() == 1
    assert "does not know this node's key" in flat(client)


@pytest.mark.usefixtures("fake_trainer")
def test_a_killed_trainer_comes_back_and_a_client_stops_with_its_children(loopback):
    loopback.make_certificates(1)
    loopback.server()
    client = loopback.client(0, 1)
    client.wait_for("connected to .* trainer warm")
    (trainer,) = [p for p in loopback.processes() if "fake_trainer" in p.cmdline()]
    trainer.kill()
    client.wait_for("the trainer ended with code -9, again in 1 s")
    again = len(client.lines)
    assert eventually(lambda: any("trainer warm" in line for line in client.lines[again:]))
    assert client.stop() == 0
    left = [p for p in loopback.processes() if p.environ()["PERENNIAL_HOME"].endswith("c0")]
    assert left == []


@pytest.mark.usefixtures("fake_trainer")
def test_a_killed_superlink_comes_back_with_its_nodes_and_they_with_it(loopback):
    loopback.make_certificates(1)
    server = loopback.server()
    client = loopback.client(0, 1)
    client.wait_for("connected to")
    (superlink,) = [
        p for p in loopback.processes() if "orchestrator.deployment.superlink" in p.cmdline()
    ]
    said, shown = len(server.lines), len(client.lines)
    superlink.kill()
    server.wait_for("the SuperLink ended with code -9, again in 1 s")
    assert eventually(lambda: any("submit with" in x for x in server.lines[said:]), 120)
    assert eventually(lambda: any(" · connecting" in x for x in client.lines[shown:]), 120)
    assert eventually(lambda: " · connected" in client.lines[-1], 120), client.output
    assert "does not know this node" not in client.output
    assert client.stop() == 0
    assert server.stop() == 0


@pytest.mark.usefixtures("fake_trainer")
def test_a_killed_supernode_waits_until_it_may_come_back(loopback):
    loopback.make_certificates(1)
    loopback.server()
    client = loopback.client(0, 1)
    client.wait_for("connected to")
    (supernode,) = [
        p for p in loopback.processes() if "flower_supernode as f" in " ".join(p.cmdline())
    ]
    supernode.kill()
    client.wait_for("takes this node for connected still")
    assert eventually(lambda: " · connected" in client.lines[-1], 240), client.output
    assert client.stop() == 0


@pytest.mark.usefixtures("fake_trainer")
def test_an_insecure_server_says_so_and_takes_clients_without_keys(loopback):
    server = loopback.server("--insecure")
    assert "WARNING --insecure: no encryption" in server.output
    client = loopback.plain_client(0, 1)
    client.wait_for("connected to")
    assert client.stop() == 0
    assert server.stop() == 0


def test_a_server_without_certificates_is_refused_with_the_way_to_make_them(loopback):
    for options in ([], ["--certs", "nowhere"]):
        server = loopback.start("server", "--port", loopback.port, *options)
        assert server.ends() == 2
        assert "perennial certs --to" in flat(server)


def flat(command: Command) -> str:
    return " ".join(command.output.split())
