"""How a run gets its clients: in this process, or simulated on Ray from a child process.

This is the one place where server and clients meet.  A simulation has the same transport, messages
and ClientApp as a federation, over a grid of our own (``ray_grid.py``) and not through ``flwr
run``: no SuperLink to start, nothing left running afterwards and no touch of the user's Flower
settings.
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
from typing import TYPE_CHECKING, Final

from orchestrator.deployment.flower import QUIET
from orchestrator.home import Home
from orchestrator.loading import loading
from orchestrator.signals import handling
from orchestrator.stopping import GRACE_SECONDS, ask_to_stop, settled
from orchestrator.store.base import ALIVE, RunStatus
from strategies.errors import StoreUnreachableError
from strategies.types import ClientId, client_ids

if TYPE_CHECKING:
    from flwr.clientapp import ClientApp

    from clients.settings import ClientSettings
    from orchestrator.config import RunConfig
    from orchestrator.transport import Endpoint

_LOOK_SECONDS: Final = 0.25
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
    """Train all clients here, one after another; ``on_progress`` is called between them.

    Ctrl-C and SIGTERM leave an interrupted run.
    """
    from clients.settings import ClientSettings
    from clients.trainer import LocalTrainer
    from orchestrator.conduct import conduct
    from orchestrator.transport import InProcessTransport

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
    try:
        with handling(signal.default_int_handler):
            return conduct(run_id, config, InProcessTransport(endpoints, on_progress), home)
    except KeyboardInterrupt:
        return RunStatus.INTERRUPTED


def export_merged(adapter: Path, to: Path) -> None:
    """Write the model of an adapter folder with the adapter merged into it."""
    from clients.model import merge

    merge(adapter, to)


@dataclass(slots=True)
class Simulation:
    """A run in a child process in a session of its own: on Ray, or with all clients in it.

    ``asked`` says whether it was asked to stop from here.
    """

    run_id: str
    home: Home
    process: subprocess.Popen[bytes]
    log_path: Path
    asked: bool = False

    @classmethod
    def start(cls, run_id: str, home: Home) -> Simulation:
        """Carry a submitted run on; everything it prints goes to the run's log."""
        log_path = home.run_folder(run_id) / "run.log"
        log_path.parent.mkdir(parents=True, exist_ok=True)
        federation = home.store().get_run(run_id).config["federation"]
        address = federation.get("ray_address")
        words = [run_id, federation["transport"], *([address] if address else [])]
        with log_path.open("ab") as log:
            process = subprocess.Popen(  # noqa: S603 - our own module
                [sys.executable, "-m", "orchestrator.child", *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=_KEEP_MEMORY | os.environ | QUIET | home.environment(),
                start_new_session=True,  # Ctrl-C is for whoever watches; the run is asked to stop
            )
        return cls(run_id, home, process, log_path)

    def watch(self, show: Callable[[], None], *, every_seconds: float = _LOOK_SECONDS) -> RunStatus:
        """Call ``show`` until the run has ended; on Ctrl-C or SIGTERM ask it to stop, and wait."""
        try:
            with handling(signal.default_int_handler):
                while self.process.poll() is None:
                    with suppress(StoreUnreachableError):  # the run's own patience decides
                        show()
                    time.sleep(every_seconds)
        except KeyboardInterrupt:
            self.stop()
        show()
        return self._settle()

    def stop(self) -> None:
        """Ask the run to stop at its next safe point; end its processes if it does not."""
        store, deadline, told = self.home.store(), time.monotonic() + GRACE_SECONDS, False
        self.asked = True
        while self.process.poll() is None and time.monotonic() < deadline:
            told = told or ask_to_stop(self.run_id, store)  # False before it has started
            time.sleep(_LOOK_SECONDS)
        if self.process.poll() is None:
            self._kill()

    def _settle(self) -> RunStatus:
        """The run's final status; a process that died without a word leaves an interrupted run."""
        store = self.home.store()
        if store.get_run(self.run_id).status in ALIVE:
            self._kill()
        reason = f"its process ended with code {self.process.returncode}; see {self.log_path}"
        return settled(self.run_id, store, reason)

    def _kill(self) -> None:
        """End it and all it has started, at once."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def carry_on(run_id: str) -> None:
    """Take a submitted run to its end, in the process that was started for it."""
    from orchestrator.config import parse_config

    home = Home.from_environment()
    config = parse_config(home.store().get_run(run_id).config, source=f"run {run_id}")
    if config.federation.transport == "in-process":
        run_in_process(run_id, config, home, on_progress=lambda: None)
    else:
        _simulate(run_id, config, home)


def _simulate(run_id: str, config: RunConfig, home: Home) -> None:
    """Our ServerApp's work in this process, our ClientApp in Ray's, which ``child.py`` started."""
    from clients.settings import ClientSettings
    from orchestrator.conduct import conduct
    from orchestrator.flower_transport import FlowerTransport
    from orchestrator.ray_grid import simulated

    federation = config.federation
    settings = ClientSettings(
        cache_folder=home.cache_folder,
        state_folder=home.client_folder,
        num_threads=federation.threads_per_client,
    )
    make_app = partial(_client_app, settings)
    with simulated(make_app, federation.clients, federation.threads_per_client) as grid:
        transport = FlowerTransport(grid, federation.clients, federation.min_clients)
        conduct(run_id, config, transport, home)


def _client_app(settings: ClientSettings) -> ClientApp:
    """A ClientApp with a trainer in its own process, loaded before the first message comes."""
    with loading():
        from clients.client_app import local_trainer, make_client_app

        trainer = local_trainer(settings)
    return make_client_app(lambda _: trainer)
