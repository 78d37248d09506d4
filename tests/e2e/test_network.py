"""Four machines on lines of their own, TLS, node keys and PostgreSQL; some die, some come late."""

from __future__ import annotations

import os
import signal
import statistics
import time
from collections.abc import Callable, Iterator

import numpy as np
import psutil
import pytest

from clients.addresses import read_token
from clients.trainer_client import TrainerClient
from orchestrator.home import Home
from orchestrator.store.base import RunStatus
from strategies.cores import usable_cores
from strategies.errors import TransportError
from tests.conftest import REPOSITORY
from tests.e2e import network
from tests.e2e.federation import Command, Loopback, eventually
from tests.e2e.retold import retold

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

RUN = (
    "federation.clients=4",
    "federation.min_clients=3",
    "federation.deadline_seconds=45.0",
    "federation.round_timeout_seconds=240.0",
    "stream.classes_per_task=5",
    "learning.rounds_per_task=3",
    "learning.local_steps=10",
    'learning.methods=[{name="finetune"}]',
    "checkpoints.keep=99",  # every step is told again
    "model.pretext.steps=5",
    'strategy.rank={name="spectral", rank=64, energy=1.0}',
)


@pytest.fixture
def machines() -> Iterator[network.Network]:
    if why := network.missing():
        pytest.skip(why)
    made = network.Network()
    try:
        made.make()
        yield made
    finally:
        made.remove()


@pytest.fixture
def federation(tmp_path, machines, postgres_server) -> Iterator[Loopback]:
    url = postgres_server.new_database()
    made = Loopback(tmp_path, host=machines.host, database=url)
    yield made
    made.end()
    postgres_server.drop(url)


def test_slow_lines_a_killed_client_and_a_late_one(federation, machines, tmp_path):
    insides = [machines.machine(slow=number < 2) for number in range(4)]
    federation.make_certificates(4)
    server = federation.server()
    clients = [federation.client(number, 4, insides[number]) for number in range(3)]
    for client in clients:
        client.wait_for(f"connected to {federation.address} · trainer warm", 240)
    settings = [word for value in RUN for word in ("--set", value)]
    run = federation.start(
        "run", REPOSITORY / "examples" / "digits.toml", *settings,
        "--on", federation.address, "--root-certificates", federation.certs / "ca.crt",
    )  # fmt: skip
    home = Home(folder=tmp_path / "home", database_url=federation.database)

    def trained() -> int:
        runs = home.store().list_runs()
        return sum(r.kind == "train" for r in home.store().rounds(runs[0].run_id)) if runs else 0

    assert _while_alive(run, lambda: trained() >= 2, 400), run.output
    assert _while_alive(run, lambda: _is_training(federation, 2), 60), run.output
    _kill(clients[2], federation)
    late = federation.client(3, 4, insides[3])
    (record,) = home.store().list_runs()

    def heard(kind: str, client: str) -> bool:
        events = home.store().events(record.run_id)
        return any(e.kind == kind and e.data["client_id"] == client for e in events)

    assert _while_alive(run, lambda: heard("client-joined", "client-3"), 300), late.output
    again = federation.client(2, 4, insides[2])
    assert _while_alive(run, lambda: heard("client-joined", "client-2"), 300), again.output
    assert run.ends(900) == 0, f"{run.output}\n{federation.log.read_text()[-3000:]}"
    assert server.process.poll() is None

    done, rounds = home.store().get_run(record.run_id), list(home.store().rounds(record.run_id))
    assert done.status is RunStatus.COMPLETED
    replies = [reply for step in rounds for reply in step.replies]
    lost = [reply for reply in replies if reply.status == "failed"]
    assert any(r.client_id == "client-2" and r.failure_reason == "unreachable" for r in lost)
    on_record = [e for e in home.store().events(record.run_id) if e.kind == "client-failed"]
    assert len(on_record) == len(lost)

    last = [reply for step in rounds if step.kind == "train" for reply in step.replies][-4:]
    ranks = {reply.client_id: _mean_rank(reply.ranks) for reply in last}
    assert set(ranks) == {f"client-{number}" for number in range(4)}
    assert max(ranks["client-0"], ranks["client-1"]) < min(ranks["client-2"], ranks["client-3"])

    threads = usable_cores()
    states = list(retold(record.run_id, home, tmp_path / "retold", threads))
    assert len(states) == len(rounds)
    for told, kept in states:
        assert told.tensors.keys() == kept.tensors.keys()
        for key, value in told.tensors.items():
            np.testing.assert_allclose(value, kept.tensors[key], atol=1e-6, err_msg=key.text)


def _mean_rank(ranks: dict[str, int]) -> float:
    """Over low-rank groups; 0 where a client trained none of them."""
    found = [rank for rank in ranks.values() if rank]
    return statistics.mean(found) if found else 0.0


def _while_alive(run: Command, done: Callable[[], bool], seconds: float) -> bool:
    return eventually(lambda: run.process.poll() is not None or done(), seconds) and (
        run.process.poll() is None
    )


def _is_training(federation: Loopback, number: int) -> bool:
    work = federation.folder / f"c{number}"
    try:
        token = read_token(work / "trainer.token")
        return bool(TrainerClient(f"unix:{work / 'trainer.sock'}", token).status().busy)
    except TransportError:
        return False


def _kill(command: Command, federation: Loopback) -> None:
    """Pull the plug of one machine: every process of it at once."""
    home = federation.folder / "c2"
    family = [command.process.pid]
    family += [p.pid for p in federation.processes() if _home_of(p) == str(home)]
    for pid in family:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    time.sleep(0.2)


def _home_of(process: psutil.Process) -> str:
    try:
        return process.environ().get("PERENNIAL_HOME", "")
    except psutil.Error:
        return ""
