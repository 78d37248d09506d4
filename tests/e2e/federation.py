"""A federation on loopback for tests: certificates, commands of ``perennial``, and their end."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from orchestrator.deployment.flower import a_free_port
from tests.conftest import REPOSITORY

_COMMAND = "from orchestrator.cli import main; main()"


@dataclass
class Command:
    """A ``perennial`` command under way, and what it has printed so far."""

    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)

    @property
    def output(self) -> str:
        return "\n".join(self.lines)

    def read(self) -> None:
        for line in self.process.stdout or ():
            self.lines.append(line.rstrip("\n"))

    def wait_for(self, pattern: str, seconds: float = 240) -> str:
        """The first line that matches; fails with everything printed if none comes."""
        deadline = time.monotonic() + seconds
        while True:
            for line in list(self.lines):
                if re.search(pattern, line):
                    return line
            ended = self.process.poll() is not None
            if ended:
                time.sleep(0.5)  # its last lines are on their way
            if (ended and not re.search(pattern, self.output)) or time.monotonic() > deadline:
                raise AssertionError(f"no line {pattern!r} in:\n{self.output}")
            time.sleep(0.05)

    def ends(self, seconds: float = 240) -> int:
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running:\n{self.output}") from None
        time.sleep(0.3)
        return code

    def stop(self, seconds: float = 150) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.ends(seconds)


@dataclass
class Loopback:
    """One machine that is all of a federation; ends every process it has led to."""

    folder: Path
    host: str = "127.0.0.1"
    port: int = field(default_factory=a_free_port)
    commands: list[Command] = field(default_factory=list)
    code: str = _COMMAND
    database: str | None = None  # of the server and of who submits

    @property
    def environment(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PERENNIAL_", "FLWR_"))}
        return kept | {
            "PERENNIAL_HOME": str(self.folder / "home"),
            "PYTHONPATH": f"{REPOSITORY}{os.pathsep}{self.folder}",
            "HF_HUB_OFFLINE": "1",
            **({"PERENNIAL_DATABASE": self.database} if self.database else {}),
        }

    @property
    def certs(self) -> Path:
        return self.folder / "certs"

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    @property
    def log(self) -> Path:
        return self.folder / "home" / f"superlink-{self.port}" / "superlink.log"

    def start(self, *arguments: str | Path | int, inside: Sequence[str] = ()) -> Command:
        """``inside`` is a command that runs another one somewhere else."""
        process = subprocess.Popen(
            [*inside, sys.executable, "-c", self.code, *map(str, arguments)],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        command = Command(process)
        threading.Thread(target=command.read, daemon=True).start()
        self.commands.append(command)
        return command

    def make_certificates(self, nodes: int) -> None:
        made = self.start("certs", "--to", "certs", "--host", self.host, "--nodes", nodes)
        assert made.ends() == 0, made.output

    def server(self, *more: str) -> Command:
        options = more or ("--certs", str(self.certs))
        server = self.start("server", "--host", self.host, "--port", self.port, *options)
        server.wait_for("submit with")
        return server

    def client(
        self, number: int, clients: int, inside: Sequence[str] = (), **options: str | Path
    ) -> Command:
        """``options`` replace the right ones: ``auth_key``, ``root_certificates``, …"""
        given: dict[str, str | Path] = {
            "root_certificates": self.certs / "ca.crt",
            "auth_key": self.certs / "nodes" / f"client-{number}.key",
            "work": self.folder / f"c{number}",
        } | options
        words = [
            word for key, value in given.items() for word in (f"--{key.replace('_', '-')}", value)
        ]
        return self._client(number, clients, *words, inside=inside)

    def plain_client(self, number: int, clients: int) -> Command:
        return self._client(number, clients, "--insecure", "--work", self.folder / f"c{number}")

    def _client(
        self, number: int, clients: int, *words: str | Path, inside: Sequence[str] = ()
    ) -> Command:
        (self.folder / "data").mkdir(exist_ok=True)
        return self.start(
            "client", "--superlink", self.address, "--data", self.folder / "data",
            "--number", number, "--clients", clients, *words, inside=inside,
        )  # fmt: skip

    def processes(self) -> list[psutil.Process]:
        """Every process that our environment has reached."""
        return [p for p in psutil.process_iter() if _belongs(p, str(self.folder / "home"))] + [
            p for p in psutil.process_iter() if _belongs(p, str(self.folder) + "/c")
        ]

    def end(self) -> None:
        for command in self.commands:
            if command.process.poll() is None:
                command.process.kill()
        for process in self.processes():
            try:
                process.kill()
            except psutil.Error:
                continue


def _belongs(process: psutil.Process, home: str) -> bool:
    try:
        return process.environ().get("PERENNIAL_HOME", "").startswith(home)
    except psutil.Error:
        return False


def eventually(done: Callable[[], bool], seconds: float = 30) -> bool:
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True
