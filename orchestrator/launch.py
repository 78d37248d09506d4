"""How a run gets its clients: in this process, or a Flower simulation on Ray in a child process.

This is the one place where server and clients meet, and the only one that knows how Flower is
launched.  The simulation is started through ``run_simulation`` and not through ``flwr run``: the
same ServerApp, ClientApp and Ray backend, but no SuperLink to start, nothing left running
afterwards and no touch of the user's Flower settings.  Flower marks the function as deprecated,
which is why the range of flwr is narrow.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from orchestrator.conduct import conduct
from orchestrator.config import RunConfig, parse_config
from orchestrator.deployment.flower import DATABASE_VARIABLE, QUIET
from orchestrator.home import Home
from orchestrator.store.base import RunStatus
from orchestrator.transport import Endpoint, InProcessTransport
from strategies.errors import StaleRunStatusError
from strategies.types import ClientId, client_ids

GRACE_SECONDS: Final = 45.0
_ALIVE: Final = (RunStatus.CREATED, RunStatus.RUNNING, RunStatus.STOPPING)
# glibc would give every large temporary of a training step back to the kernel and fetch it anew,
# page by page; keeping the memory made a step of MiniLM about 5 % faster (docs/performance.md).
_KEEP_MEMORY: Final = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**33),
    "MALLOC_TOP_PAD_": str(2**26),
}


def run_in_process(
    run_id: str, config: RunConfig, home: Home, *, on_progress: Callable[[], None]
) -> RunStatus:
    """Train all clients here, one after another; ``on_progress`` is called between them."""
    from clients.settings import ClientSettings
    from clients.trainer import LocalTrainer

    trainer = LocalTrainer(
        ClientSettings(
            cache_folder=home.cache_folder,
            state_folder=home.client_folder,
            num_threads=config.federation.threads_per_client,
        )
    )
    endpoints: dict[ClientId, Endpoint] = {
        client: partial(trainer.answer, client) for client in client_ids(config.federation.clients)
    }
    return conduct(run_id, config, InProcessTransport(endpoints, on_progress), home)


def export_merged(adapter: Path, to: Path) -> None:
    """Write the model of an adapter folder with the adapter merged into it."""
    from clients.model import merge

    merge(adapter, to)


@dataclass(slots=True)
class Simulation:
    """A Flower simulation of one run, as a child process in its own session."""

    run_id: str
    home: Home
    process: subprocess.Popen[bytes]
    log_path: Path

    @classmethod
    def start(cls, run_id: str, home: Home) -> Simulation:
        """Start simulating a submitted run; everything it prints goes to the run's log."""
        log_path = home.run_folder(run_id) / "run.log"
        log_path.parent.mkdir(parents=True, exist_ok=True)
        with log_path.open("ab") as log:
            process = subprocess.Popen(  # noqa: S603 - our own module
                [sys.executable, "-m", "orchestrator.launch", run_id],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=_KEEP_MEMORY | os.environ | QUIET | home.environment(),
                start_new_session=True,  # Ctrl-C is for whoever watches; the run is asked to stop
            )
        return cls(run_id, home, process, log_path)

    def watch(self, show: Callable[[], None], *, every_seconds: float = 0.25) -> RunStatus:
        """Call ``show`` until the run has ended; on Ctrl-C or SIGTERM ask it to stop, and wait."""
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            while self.process.poll() is None:
                show()
                time.sleep(every_seconds)
        except KeyboardInterrupt:
            self.stop()
        show()
        return self._settle()

    def stop(self) -> None:
        """Ask the run to stop at its next safe point; end its processes if it does not."""
        store = self.home.store()
        with suppress(StaleRunStatusError):  # not started yet, or over already
            store.transition(
                self.run_id,
                RunStatus.STOPPING,
                expected=(RunStatus.RUNNING,),
                reason="interrupted from the keyboard",
            )
        try:
            self.process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def _settle(self) -> RunStatus:
        """The run's final status; a process that died without a word leaves an interrupted run."""
        store = self.home.store()
        status = store.get_run(self.run_id).status
        if status not in _ALIVE:
            return status
        code = self.process.returncode
        reason = f"its process ended with code {code}; see {self.log_path}"
        return store.transition(
            self.run_id, RunStatus.INTERRUPTED, expected=_ALIVE, reason=reason
        ).status


def _simulate(run_id: str) -> None:
    """The child process: Flower's simulation runtime with our two apps."""
    from flwr.serverapp import ServerApp
    from flwr.simulation import run_simulation

    from clients.client_app import local_trainer, make_client_app
    from clients.settings import ClientSettings
    from orchestrator.flower_transport import FlowerTransport

    home = Home.from_environment()
    os.environ.pop(DATABASE_VARIABLE, None)  # it may hold a password, and Ray's workers inherit
    config = parse_config(home.store().get_run(run_id).config, source=f"run {run_id}")
    threads = config.federation.threads_per_client
    settings = ClientSettings(
        cache_folder=home.cache_folder, state_folder=home.client_folder, num_threads=threads
    )
    server_app = ServerApp()

    @server_app.main()
    def main(grid: object, context: object) -> None:
        federation = config.federation
        transport = FlowerTransport(grid, federation.clients, federation.min_clients)  # type: ignore[arg-type]
        conduct(run_id, config, transport, home)

    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    run_simulation(
        server_app,
        make_client_app(lambda _: local_trainer(settings)),
        num_supernodes=config.federation.clients,
        backend_config={
            "client_resources": {"num_cpus": min(threads, cores), "num_gpus": 0.0},
            "init_args": {"num_cpus": cores, "include_dashboard": False, "log_to_driver": False},
        },
    )


if __name__ == "__main__":
    _simulate(sys.argv[1])
