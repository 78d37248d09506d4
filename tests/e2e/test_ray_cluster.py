"""A simulation on a Ray cluster of two nodes, which are processes of their own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from orchestrator.conduct import submit
from orchestrator.deployment.flower import QUIET
from orchestrator.launch import Simulation
from orchestrator.store.base import RunStatus
from tests.conftest import tiny_config
from tests.golden.test_runs import assert_same_bits

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

_AT_WORK = "ray::_Host.answer"  # what Ray calls a worker that is answering a message


@dataclass(slots=True)
class Cluster:
    """A head and another node with one core each, as ``ray start`` makes them."""

    folder: Path
    port: int = 0
    nodes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        self.port, client_port = free_port(), free_port()
        head = (f"--port={self.port}", f"--ray-client-server-port={client_port}")
        self._start("--head", *head, "--include-dashboard=false", f"--temp-dir={self.folder}")
        self._until(lambda: accepts(self.port), "the head listens")
        self._start(f"--address={self.address}")
        self._until(lambda: len(self.raylets()) == 2, "both raylets run")

    def raylets(self) -> list[psutil.Process]:
        """The process of each node that starts its workers, in the order of the nodes."""
        return [
            process
            for node in self.nodes
            for process in psutil.Process(node.pid).children(recursive=True)
            if process.name() == "raylet"
        ]

    def at_work(self) -> set[int]:
        """The nodes, by number, that have a client at work."""
        return {
            number for number, raylet in enumerate(self.raylets()) if any(map(works, below(raylet)))
        }

    def end(self) -> None:
        """End all processes of the nodes, and see that they are gone."""
        processes = [each for node in self.nodes for each in below(psutil.Process(node.pid))]
        for node in self.nodes:
            os.killpg(node.pid, signal.SIGTERM)
        _, alive = psutil.wait_procs(processes, timeout=20)
        for process in alive:
            process.kill()
        for node in self.nodes:
            node.wait(timeout=20)
        psutil.wait_procs(processes, timeout=20)

    def _start(self, *arguments: str) -> None:
        command = [
            str(Path(sys.executable).with_name("ray")), "start", *arguments, "--block",
            "--node-ip-address=127.0.0.1", "--num-cpus=1", "--num-gpus=0",
            f"--object-store-memory={80 * 2**20}", "--disable-usage-stats",
            "--dashboard-agent-listen-port=0", "--dashboard-agent-grpc-port=0",
            "--metrics-export-port=0", "--runtime-env-agent-port=0",
        ]  # fmt: skip
        with (self.folder / f"node-{len(self.nodes)}.log").open("wb") as log:
            environment = os.environ | QUIET
            self.nodes.append(
                subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    start_new_session=True,
                )
            )

    def _until(self, met, what: str) -> None:
        deadline = time.monotonic() + 120
        while not met():
            logs = "\n".join(path.read_text() for path in sorted(self.folder.glob("node-*.log")))
            assert time.monotonic() < deadline, f"not {what}:\n{logs}"
            assert all(node.poll() is None for node in self.nodes), logs
            time.sleep(0.2)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def accepts(port: int) -> bool:
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", port)) == 0


def below(process: psutil.Process) -> list[psutil.Process]:
    return process.children(recursive=True)


def works(process: psutil.Process) -> bool:
    try:
        return any(_AT_WORK in part for part in process.cmdline())
    except psutil.Error:
        return False


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    # Not pytest's own folder: the paths of Ray's sockets must be short.
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        made = Cluster(Path(folder))
        try:
            made.start()
            yield made
        finally:
            made.end()


def test_clients_on_two_nodes_give_the_bits_of_one_process(home, run_here, cluster):
    alone = run_here(tiny_config())
    config = tiny_config(federation__transport="ray", federation__ray_address=cluster.address)
    run_id, seen = submit(config, home), Counter[int]()
    simulation = Simulation.start(run_id, home)
    status = simulation.watch(lambda: seen.update(cluster.at_work()), every_seconds=0.05)
    assert status is RunStatus.COMPLETED, simulation.log_path.read_text()
    assert set(seen) == {0, 1}, "clients were at work on one node alone"
    assert_same_bits(home, alone, run_id)
    assert all(node.poll() is None for node in cluster.nodes), "the cluster is not ours to end"
