"""A buffered run on real SuperNodes, one of which is slow."""

from __future__ import annotations

import os

import numpy as np
import pytest

from orchestrator.home import Home
from orchestrator.store.base import RunStatus
from tests.chaos.deployed_victims import Strike, is_at_work, process_of
from tests.conftest import REPOSITORY
from tests.e2e.federation import eventually
from tests.e2e.retold_buffered import retold_buffered

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

RUN = (
    "checkpoints.keep=99",  # every step is told again
    "federation.clients=4",
    "federation.buffer.size=2",
    'strategy.aggregation={name="fedavg"}',
    "stream.classes_per_task=5",
    "learning.rounds_per_task=4",
    "learning.local_steps=10",
    'learning.methods=[{name="finetune"}]',
    "model.pretext.steps=5",
)
SLOW = 3


def test_a_buffered_run_goes_on_without_its_slow_client_and_says_how_stale_it_was(loopback):
    loopback.make_certificates(4)
    loopback.server()
    clients = [loopback.client(number, 4) for number in range(4)]
    for client in clients:
        client.wait_for(f"connected to {loopback.address} · trainer warm", 600)
    settings = [word for value in RUN for word in ("--set", value)]
    run = loopback.start(
        "run", REPOSITORY / "examples" / "digits.toml", *settings,
        "--on", loopback.address, "--root-certificates", loopback.certs / "ca.crt",
    )  # fmt: skip
    folder = loopback.folder / "home"
    home = Home(folder=folder, database_url=f"sqlite:///{folder / 'perennial.db'}")
    run.wait_for("task 1 of 2 .* round 1 of 4", 600)
    assert eventually(lambda: is_at_work(loopback, SLOW), 120), run.output
    trainer = process_of(loopback, Strike("trainer", "training", 1, SLOW))
    trainer.suspend()
    run.wait_for("task 1 of 2 .* round 3 of 4", 600)  # two rounds have closed without it
    trainer.resume()
    assert run.ends(900) == 0, f"{run.output}\n{loopback.log.read_text()[-3000:]}"

    (record,) = home.store().list_runs()
    assert record.status is RunStatus.COMPLETED
    rounds = list(home.store().rounds(record.run_id))
    trained = [step for step in rounds if step.kind == "train"]
    used = [[r for r in step.replies if r.status == "ok"] for step in trained]
    assert all(len(replies) >= 2 for replies in used)
    stale = [r.metrics["staleness"] for replies in used for r in replies]
    assert max(stale) > 0
    lost = [r for step in trained for r in step.replies if r.status == "failed"]
    assert {r.failure_reason for r in lost} <= {"stale"}
    slow = [r for step in trained for r in step.replies if r.client_id == f"client-{SLOW}"]
    assert slow[0].status == "failed" or slow[0].metrics["staleness"] >= 2

    threads, count = len(os.sched_getaffinity(0)), 0
    for told, kept in retold_buffered(record.run_id, home, loopback.folder / "retold", threads):
        assert told.tensors.keys() == kept.tensors.keys()
        for key, value in told.tensors.items():
            np.testing.assert_allclose(value, kept.tensors[key], atol=1e-6, err_msg=key.text)
        count += 1
    assert count == len(rounds)
