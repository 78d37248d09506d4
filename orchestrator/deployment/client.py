"""A client's side of a federation: its trainer and its SuperNode, started and kept together."""

from __future__ import annotations

import json
import os
import secrets
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from typing import Final

from orchestrator.deployment.elsewhere import Elsewhere
from orchestrator.deployment.flower import Address, a_free_port, flower_environment
from orchestrator.deployment.probe import probe
from orchestrator.deployment.processes import Children, Program, Running
from orchestrator.deployment.reading import NodeSigns, refusal, still_connected, trainer_refusal
from orchestrator.deployment.supervisor import Process, Supervised
from strategies.cores import usable_cores
from strategies.types import ClientId, client_ids

TRAINER_MODULE: Final = "clients.trainer_service"
CLIENT_APP: Final = "flwr-clientapp"
DRAIN_SECONDS: Final = 120.0
# Flower replaces a ClientApp that never said anything after 30 s and answers for one that fell
# silent after 60; for one that died between the two, before it had its order, it waits for ever.
_DESERTED_SECONDS: Final = 90.0
_LOOK_SECONDS: Final = 10.0  # looking goes through all processes of the machine
_STOP_SECONDS: Final = 10.0
_LONGEST_SOCKET_PATH: Final = 100  # the kernel allows 107 bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientOptions:
    """What the operator of a client machine says.

    ``data`` is the folder its examples are read from; ``memory_limit_bytes`` and
    ``uplink_limit_bytes_per_second`` are None where nothing was said; ``kind`` is auto, edge, gpu
    or cpu.  ``work`` is the client's own folder: state, cache, logs.  ``trainer`` is the socket,
    ``unix:PATH``, of a trainer that somebody else keeps running; None if we start one.  ``metrics``
    is where the trainer serves Prometheus, if anywhere.
    """

    superlink: Address
    root_certificates: Path | None
    auth_key: Path | None
    fingerprint: str
    insecure: bool
    number: int
    clients: int
    data: Path
    kind: str
    memory_limit_bytes: int | None
    uplink_limit_bytes_per_second: int | None
    work: Path
    trainer: str | None = None
    metrics: Address | None = None

    @property
    def client_id(self) -> ClientId:
        """Which logical client this is."""
        return client_ids(self.clients)[self.number]

    def trainer_settings(self) -> dict[str, object]:
        """The trainer's settings file; keys that were not set are left out."""
        settings: dict[str, object | None] = {
            "cache_folder": str(self.work / "cache"),
            "state_folder": str(self.work / "clients"),
            "data_folder": str(self.data),
            "num_threads": usable_cores(),
            "kind": None if self.kind == "auto" else self.kind,
            "memory_limit_bytes": self.memory_limit_bytes,
            "uplink_limit_bytes_per_second": self.uplink_limit_bytes_per_second,
        }
        return {key: value for key, value in settings.items() if value is not None}


@dataclass(slots=True, kw_only=True)
class Client:
    """The two processes of a client machine, under supervision."""

    options: ClientOptions
    signs: NodeSigns
    trainer: Supervised
    supernode: Supervised
    _looked_at: float = 0.0
    _attended_at: float = 0.0  # when last no order lay here without a ClientApp

    @classmethod
    def prepare(cls, options: ClientOptions) -> Client:
        """Write what the processes need; nothing is started yet."""
        signs = NodeSigns()
        address = options.trainer or _socket(options.work)
        trainer, supernode = _programs(options, signs, address)
        children = Children(options.work / "children")
        children.end_left_behind(_STOP_SECONDS)  # of a `perennial client` that was killed
        superlink, key = str(options.superlink), options.fingerprint

        def started(program: Program) -> Running:
            running = Running.start(program)
            children.note(running)
            return running

        def start_trainer() -> Process:
            signs.trainer_listens = False
            if options.trainer:
                elsewhere = Elsewhere.reached(options.trainer)
                signs.trainer_listens = True
                return elsewhere
            return started(trainer)

        def start_supernode() -> Running:
            probe(options.superlink, options.root_certificates, insecure=options.insecure)
            signs.connected, signs.answering, signs.waiting = False, "", False
            # A port is free when it is taken, not when the client started.
            return started(replace(supernode, command=_supernode_command(options)))

        def reason(_: int, lines: Sequence[str]) -> str | None:
            return refusal(lines, address=superlink, key=key)

        return cls(
            options=options,
            signs=signs,
            trainer=Supervised(
                name="the trainer",
                start=start_trainer,
                is_ready=lambda: signs.trainer_listens,
                verdict=trainer_refusal,
            ),
            supernode=Supervised(
                name="the SuperNode",
                start=start_supernode,
                is_ready=lambda: signs.connected,
                verdict=reason,
                passing=lambda lines: still_connected(lines, address=superlink),
            ),
        )

    def tick(self, now: float) -> None:
        """Look after both; the SuperNode is not started before the trainer listens.

        Raises: RefusedError when one is given up.
        """
        self.trainer.tick(now)
        if self.supernode.process or self.signs.trainer_listens:
            self.supernode.tick(now)
        if self._is_deserted(now):
            reason = "the SuperNode waited for a ClientApp that had died"
            self.supernode.restart(now, reason, _STOP_SECONDS)

    def drain(self, wait: Callable[[Callable[[], bool], float], bool]) -> bool:
        """Let the answer under way be finished, within bounds, then end both; whether it was.

        ``wait(done, seconds)`` waits and says whether ``done`` came true.
        """
        finished = wait(lambda: self.supernode.process is None or not self._busy(), DRAIN_SECONDS)
        self.end()
        return finished

    def end(self) -> None:
        """End both, the SuperNode first, so that nothing new is asked of the trainer."""
        self.supernode.end(_STOP_SECONDS)
        self.trainer.end(_STOP_SECONDS)

    def status(self, now: float) -> str:
        """One line: who, what, where, how the trainer is, how far it has come."""
        answers = self.signs.answers
        return " · ".join(
            (
                self.options.client_id,
                self.options.kind,
                self._connection(now),
                self._trainer(now),
                f"{answers} answer{'' if answers == 1 else 's'}",
            )
        )

    def _is_deserted(self, now: float) -> bool:
        """Whether an order has long lain here without a ClientApp to answer it."""
        node = self.supernode.process
        if node is None or not self.signs.waiting:
            self._attended_at = now
        elif now - self._looked_at >= _LOOK_SECONDS:
            self._looked_at = now
            if node.has_descendant(CLIENT_APP):
                self._attended_at = now
        return now - self._attended_at > _DESERTED_SECONDS

    def _busy(self) -> bool:
        process = self.supernode.process
        return bool(self.signs.answering) and process is not None and process.poll() is None

    def _connection(self, now: float) -> str:
        address = self.options.superlink
        if self.supernode.process is None and self.supernode.failures:
            return f"{self.supernode.reason}, again in {ceil(self.supernode.waits(now))} s"
        connected = self.supernode.process is not None and self.signs.connected
        return f"{'connected' if connected else 'connecting'} to {address}"

    def _trainer(self, now: float) -> str:
        if self.trainer.process is None and self.trainer.failures:
            return f"{self.trainer.reason}, again in {ceil(self.trainer.waits(now))} s"
        return "trainer warm" if self.signs.trainer_listens else "trainer starting"


def _programs(options: ClientOptions, signs: NodeSigns, address: str) -> tuple[Program, Program]:
    """The trainer and the SuperNode; makes the work folder and the files in it.

    A trainer of somebody else's has a socket that is our user's alone, and no token.
    """
    work = options.work
    work.mkdir(mode=0o700, parents=True, exist_ok=True)
    settings, token = work / "settings.json", work / "trainer.token"
    settings.write_text(json.dumps(options.trainer_settings(), indent=2), encoding="utf-8")
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    home = {"PERENNIAL_HOME": str(work)}
    shown = {} if options.trainer else {"PERENNIAL_TRAINER_TOKEN_FILE": str(token)}
    trainer = Program(
        name="trainer",
        command=[
            sys.executable, "-m", TRAINER_MODULE, "--address", address,
            "--settings", str(settings), "--token-file", str(token), *_metrics(options.metrics),
        ],
        environment=flower_environment(work / "flower", home),
        log_path=work / "trainer.log",
        cwd=options.data,
        on_line=signs.read_trainer,
    )  # fmt: skip
    supernode = Program(
        name="supernode",
        command=_supernode_command(options),
        environment=flower_environment(
            work / "flower",
            home | {"PERENNIAL_TRAINER": address} | shown,
        ),
        log_path=work / "supernode.log",
        cwd=options.data,
        on_line=signs.read_supernode,
    )
    return trainer, supernode


def _metrics(at: Address | None) -> list[str]:
    return ["--metrics-host", at.host, "--metrics-port", str(at.port)] if at else []


def _socket(work: Path) -> str:
    """A socket in the work folder, or in a folder of its own where that path is too long."""
    path = work / "trainer.sock"
    if len(os.fsencode(path)) > _LONGEST_SOCKET_PATH:
        path = Path(tempfile.mkdtemp(prefix="perennial-")) / "trainer.sock"
    return f"unix:{path}"


def _supernode_command(options: ClientOptions) -> list[str]:
    command = [
        sys.executable, "-c", "from flwr.supernode.cli import flower_supernode as f; f()",
        "--superlink", str(options.superlink), "--port", str(a_free_port()),
        "--node-config", f"partition-id={options.number} num-partitions={options.clients}",
    ]  # fmt: skip
    if options.insecure:
        return [*command, "--insecure"]
    if options.root_certificates:
        command += ["--root-certificates", str(options.root_certificates)]
    return [*command, "--auth-supernode-private-key", str(options.auth_key)]
