"""A ClientApp that dies in the moment in which Flower misses nothing: its order lies there."""

from __future__ import annotations

import pytest

from orchestrator.home import Home
from orchestrator.store.base import RunStatus
from tests.conftest import REPOSITORY

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

# Python imports this on its way up: the ClientApp of client 1 dies after it has reported for its
# task and before it has fetched its message, once.
DIES_ONCE = """
import os, sys
from importlib import import_module
from pathlib import Path
fuse = Path(os.environ["PERENNIAL_HOME"]) / "dies-once"
if fuse.exists() and any(word.endswith("flwr-clientapp") for word in sys.orig_argv):
    app = import_module("flwr.supernode.runtime.run_clientapp")
    def dies(client):
        fuse.unlink()
        client.PullTaskInput(app.PullTaskInputRequest())
        os.kill(os.getpid(), 9)
    app.pull_task_input = dies
"""
RUN = (
    "federation.clients=2",
    "stream.classes_per_task=5",
    "learning.rounds_per_task=1",
    "learning.local_steps=2",
    "model.pretext.steps=5",
)


def test_the_supernode_that_waits_for_it_is_restarted_and_the_run_goes_on(loopback):
    (loopback.folder / "sitecustomize.py").write_text(DIES_ONCE)
    loopback.make_certificates(2)
    loopback.server()
    clients = [loopback.client(number, 2) for number in range(2)]
    for client in clients:
        client.wait_for(f"connected to {loopback.address} · trainer warm", 600)
    settings = [word for value in RUN for word in ("--set", value)]
    run = loopback.start(
        "run", REPOSITORY / "examples" / "digits.toml", *settings,
        "--on", loopback.address, "--root-certificates", loopback.certs / "ca.crt",
    )  # fmt: skip
    fuse = loopback.folder / "c1" / "dies-once"
    run.wait_for("scoring the untrained model", 600)
    fuse.touch()
    clients[1].wait_for("the SuperNode waited for a ClientApp that had died", 600)
    assert not fuse.exists()
    assert run.ends(900) == 0, f"{run.output}\n{loopback.log.read_text()[-3000:]}"

    folder = loopback.folder / "home"
    home = Home(folder=folder, database_url=f"sqlite:///{folder / 'perennial.db'}")
    (record,) = home.store().list_runs()
    assert record.status is RunStatus.COMPLETED
    last = home.store().rounds(record.run_id)[-1]
    assert [reply.status for reply in last.replies] == ["ok", "ok"]
    assert all(client.process.poll() is None for client in clients)
