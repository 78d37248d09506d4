"""Child processes that we start are children that we end."""

from __future__ import annotations

import contextlib
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import psutil

_REMEMBERED_LINES: Final = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A process to start: every line it prints goes to ``log_path`` and to ``on_line``."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    log_path: Path
    cwd: Path | None = None
    on_line: Callable[[str], None] = lambda _: None


@dataclass(slots=True)
class Running:
    """A process of ours, in a session of its own so that a Ctrl-C is ours to pass on."""

    program: Program
    process: subprocess.Popen[str]
    lines: deque[str] = field(default_factory=lambda: deque(maxlen=_REMEMBERED_LINES))
    _reader: threading.Thread | None = None

    @classmethod
    def start(cls, program: Program) -> Running:
        """Start it, and a thread that reads what it prints."""
        program.log_path.parent.mkdir(parents=True, exist_ok=True)
        process = subprocess.Popen(  # noqa: S603 - our own commands
            program.command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=dict(program.environment),
            cwd=program.cwd,
            text=True,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
        running = cls(program, process)
        running._reader = threading.Thread(target=running._read, daemon=True)
        running._reader.start()
        return running

    def poll(self) -> int | None:
        """Its exit code once it has ended and everything it printed has been read."""
        code = self.process.poll()
        if code is not None and self._reader:
            self._reader.join(timeout=1)  # a grandchild may hold the pipe open
        return code

    def has_descendant(self, command: str) -> bool:
        """Whether one of its descendants has ``command`` on its command line."""
        for process in descendants(self.process.pid):
            with contextlib.suppress(psutil.Error):
                if any(word.endswith(command) for word in process.cmdline()):
                    return True  # a dead one that nobody waited for has no command line
        return False

    def end(self, grace_seconds: float) -> None:
        """SIGTERM, then SIGKILL after ``grace_seconds`` for it and all its descendants."""
        family = descendants(self.process.pid)
        with contextlib.suppress(ProcessLookupError):
            self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(grace_seconds)
        end_all([*family, *descendants(self.process.pid)], grace_seconds=1.0)
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def _read(self) -> None:
        with self.program.log_path.open("a", encoding="utf-8") as log:
            for line in self.process.stdout or ():
                log.write(line)
                log.flush()
                self.lines.append(line.rstrip("\n"))
                self.program.on_line(line.rstrip("\n"))


def descendants(pid: int) -> list[psutil.Process]:
    """The children of a process, their children, and so on; none if it is gone."""
    try:
        return list(psutil.Process(pid).children(recursive=True))
    except psutil.Error:
        return []


def end_all(processes: Sequence[psutil.Process], *, grace_seconds: float) -> None:
    """SIGTERM to each that still runs, SIGKILL to those left after ``grace_seconds``.

    A process id that has meanwhile been given to another process is left alone.
    """
    for process in processes:
        with contextlib.suppress(psutil.Error):
            if process.is_running():
                process.terminate()
    _, left = psutil.wait_procs(list(processes), timeout=grace_seconds)
    for process in left:
        with contextlib.suppress(psutil.Error):
            process.kill()


@dataclass(slots=True)
class Children:
    """A file that names the processes we have started, for the one who comes after a crash."""

    path: Path

    def note(self, running: Running) -> None:
        """Name one more."""
        with contextlib.suppress(psutil.Error), self.path.open("a", encoding="utf-8") as file:
            started = psutil.Process(running.process.pid).create_time()
            file.write(f"{running.process.pid} {started!r}\n")

    def end_left_behind(self, grace_seconds: float) -> int:
        """End those that still run, and what they started; how many there were."""
        lines = self.path.read_text("utf-8").splitlines() if self.path.exists() else []
        left = [process for line in lines if (process := _same(*line.split())) is not None]
        family = [child for process in left for child in descendants(process.pid)]
        end_all([*left, *family], grace_seconds=grace_seconds)
        self.path.unlink(missing_ok=True)
        return len(left)


def _same(pid: str, started: str) -> psutil.Process | None:
    """The process that was started then, if it runs still."""
    try:
        process = psutil.Process(int(pid))
        return process if process.create_time() == float(started) else None
    except psutil.Error:
        return None


def wait_until(done: Callable[[], bool], seconds: float, every_seconds: float = 0.2) -> bool:
    """Whether ``done`` came true within ``seconds``."""
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            return False
        time.sleep(every_seconds)
    return True
