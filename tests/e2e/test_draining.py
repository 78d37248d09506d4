"""A client that is told to stop in the middle of a training: what it was doing is finished."""

from __future__ import annotations

import signal

import pytest

from orchestrator.home import Home
from orchestrator.store.base import RunStatus
from tests.chaos.deployed_victims import is_at_work
from tests.conftest import REPOSITORY
from tests.e2e.federation import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

RUN = (
    "federation.clients=2",
    "stream.classes_per_task=5",
    "learning.rounds_per_task=1",
    "learning.local_steps=200",
    "model.pretext.steps=5",
)


def test_the_answer_under_way_is_finished_and_used_and_the_run_goes_on_without_it(loopback):
    loopback.make_certificates(2)
    loopback.server()
    staying, leaving = [loopback.client(number, 2) for number in range(2)]
    for client in (staying, leaving):
        client.wait_for(f"connected to {loopback.address} · trainer warm", 600)
    settings = [word for value in RUN for word in ("--set", value)]
    run = loopback.start(
        "run", REPOSITORY / "examples" / "digits.toml", *settings,
        "--on", loopback.address, "--root-certificates", loopback.certs / "ca.crt",
    )  # fmt: skip
    run.wait_for("task 1 of 2 .* round 1 of 1", 600)
    assert eventually(lambda: is_at_work(loopback, 1), 120), run.output
    leaving.process.send_signal(signal.SIGTERM)
    assert leaving.ends(300) == 0, leaving.output
    assert "finishing the answer under way, then stopping" in leaving.output
    assert "before the answer under way was finished" not in leaving.output
    assert run.ends(900) == 0, f"{run.output}\n{loopback.log.read_text()[-3000:]}"

    folder = loopback.folder / "home"
    home = Home(folder=folder, database_url=f"sqlite:///{folder / 'perennial.db'}")
    (record,) = home.store().list_runs()
    assert record.status is RunStatus.COMPLETED
    rounds = {step.step_index: step for step in home.store().rounds(record.run_id)}
    answered = {reply.client_id: reply.status for reply in rounds[1].replies}
    assert answered == {"client-0": "ok", "client-1": "ok"}
    assert {reply.client_id for reply in rounds[3].replies} == {"client-0"}
    left = [
        e.data["client_id"] for e in home.store().events(record.run_id) if e.kind == "client-left"
    ]
    assert left == ["client-1"]
