"""Trainers on a bench of their own: served in this process, or as a process that can be killed."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass, field
from pathlib import Path

from clients.answering import Listener, Progress
from clients.settings import MAX_MESSAGE_BYTES, ClientSettings, settings_json
from clients.trainer_service import serve
from strategies.types import ClientId, Update
from strategies.wire import decode_assignment, encode_assignment, encode_result
from tests.conftest import REPOSITORY
from tests.strategies import test_wire

WAIT_SECONDS = 300.0  # for what always comes; a test that needs it all has failed


@dataclass
class Scripted:
    """Answers an assignment with an empty update, once the test has opened the gate."""

    listener: Listener
    gate: threading.Event = field(default_factory=threading.Event)
    started: threading.Event = field(default_factory=threading.Event)
    model_loads: int = 0
    answered: list[str] = field(default_factory=list)
    forgotten: int = 0
    error: Exception | None = None

    def answer(self, client_id: ClientId, message: bytes) -> bytes:
        assignment, _ = decode_assignment(message)
        self.listener(Progress(phase="train", step=1, steps=2))
        self.started.set()
        while not self.gate.wait(0.01):
            self.listener(Progress(phase="train", step=1, steps=2))
        if self.error:
            raise self.error
        self.answered.append(assignment.assignment_id)
        return encode_result(
            Update(
                assignment_id=assignment.assignment_id,
                client_id=client_id,
                plan_hash=assignment.plan_hash(),
                delta={},
                num_examples={},
            )
        )

    def forget(self) -> None:
        self.forgotten += 1


def an_assignment(name: str = "one", *, scored: bool = False) -> bytes:
    """A message that asks ``client-0`` to train or, ``scored``, to evaluate."""
    whole = test_wire.an_assignment()
    assignment = dataclasses.replace(
        whole,
        assignment_id=name,
        client_id=ClientId("client-0"),
        work=None if scored else whole.work,
        evaluation=whole.evaluation if scored else None,
    )
    return encode_assignment(assignment, {})


@contextlib.contextmanager
def a_folder():
    """A private folder whose path is short enough for a socket."""
    with tempfile.TemporaryDirectory(prefix="trainer-") as folder:
        yield Path(folder)


@contextlib.contextmanager
def served(make, address, token=None, max_message_bytes=MAX_MESSAGE_BYTES):
    """A trainer served by threads of this process."""
    serving = serve(make, address, token=token, max_message_bytes=max_message_bytes)
    try:
        yield serving
    finally:
        serving.stop(5.0)


class TrainerProcess:
    """``python -m clients.trainer_service`` on a Unix socket in ``folder``."""

    def __init__(self, folder: Path, *options: str) -> None:
        settings = ClientSettings(cache_folder=folder / "cache", state_folder=folder / "state")
        (folder / "settings.json").write_text(settings_json(settings))
        self.address = f"unix:{folder}/run/trainer.sock"
        command = ["-m", "clients.trainer_service", "--address", self.address]
        self.process = subprocess.Popen(
            [sys.executable, *command, "--settings", str(folder / "settings.json"), *options],
            cwd=REPOSITORY,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1"},
            stdout=subprocess.PIPE,
            text=True,
        )

    def ready(self) -> str:
        """Its first line, which it prints when it listens."""
        return self.process.stdout.readline()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self.process.stdout.close()
