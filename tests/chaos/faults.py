"""What is done to a process at a point, and how often it has come by there, across processes."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

Action = Literal[
    "kill", "kill-all", "raise", "delay", "truncate", "duplicate", "reorder", "disk-full"
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """``action`` at the ``hit``-th time, from 1, that any process comes by ``point``; 0: always.

    It strikes at ``times`` hits in a row, for what tries again.
    ``kill`` ends the process that comes by, ``kill-all`` the run's own process first: all of a
    machine at once.  ``raise`` raises what our own code would for a fault it knows.  ``delay``
    sleeps ``seconds``.  ``truncate`` halves the bytes that are handed on or the file that the call
    was about, ``duplicate`` and ``reorder`` what is handed on one by one.  ``disk-full`` raises
    ENOSPC.
    """

    point: str
    hit: int
    action: Action = "kill"
    seconds: float = 0.0
    times: int = 1


@dataclass(slots=True)
class Plan:
    """A folder with ``plan.json``, a file per point with a byte per hit, and who is the run.

    Files count across processes and outlive them: a fault strikes once, whoever comes by.
    """

    folder: Path
    faults: dict[str, Fault]
    counting: bool = False

    @classmethod
    def write(cls, folder: Path, *faults: Fault, counting: bool = False) -> Plan:
        """A new plan, to be read by the processes under test."""
        folder.mkdir(parents=True)
        plain = {"faults": [asdict(fault) for fault in faults], "counting": counting}
        (folder / "plan.json").write_text(json.dumps(plain), encoding="utf-8")
        return cls.read(folder)

    @classmethod
    def read(cls, folder: Path) -> Plan:
        """The plan of a folder."""
        plain = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
        faults = [Fault(**fault) for fault in plain["faults"]]
        return cls(folder, {fault.point: fault for fault in faults}, plain["counting"])

    def counts(self) -> dict[str, int]:
        """How often each point was come by."""
        return {p.name: p.stat().st_size for p in sorted((self.folder / "hits").glob("*"))}

    def struck(self) -> bool:
        """Whether any fault was carried out."""
        return (self.folder / "struck").exists()

    def due(self, point: str) -> Fault | None:
        """The fault to carry out now, if this is the hit; counts it where anybody asks."""
        fault = self.faults.get(point)
        if not self.counting and fault is None:
            return None
        hit = self._count(point)
        if fault is None or (fault.hit and not fault.hit <= hit < fault.hit + fault.times):
            return None
        (self.folder / "struck").touch()
        return fault

    def _count(self, point: str) -> int:
        path = self.folder / "hits" / point
        path.parent.mkdir(exist_ok=True)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            os.write(handle, b".")
            return os.fstat(handle).st_size
        finally:
            os.close(handle)

    def started(self, pid: int) -> None:
        """Note which process is the run's own."""
        (self.folder / "run.pid").write_text(str(pid), encoding="utf-8")

    def carry_out(self, fault: Fault, call: tuple[Any, ...], result: Any) -> Any:
        """Do it; what is handed on instead of ``result``."""
        if fault.action in ("kill", "kill-all"):
            self._kill(everybody=fault.action == "kill-all")
        if fault.action == "raise":
            from strategies.errors import StrategyError

            raise StrategyError(f"struck at {fault.point}")
        if fault.action == "disk-full":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), fault.point)
        if fault.action == "delay":
            time.sleep(fault.seconds)
            return result
        return _mangled(fault, call, result)

    def _kill(self, *, everybody: bool) -> None:
        path = self.folder / "run.pid"
        if everybody and path.exists():
            with suppress(ProcessLookupError):
                os.kill(int(path.read_text(encoding="utf-8")), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)


def _mangled(fault: Fault, call: tuple[Any, ...], result: Any) -> Any:
    if fault.action != "truncate":
        items = list(result)
        return iter(items[::-1] if fault.action == "reorder" else [x for x in items for _ in "12"])
    if isinstance(result, bytes):
        return result[: len(result) // 2]
    for path in _files(call, result):
        os.truncate(path, path.stat().st_size // 2)
        return result
    raise LookupError(f"{fault.point} is about no bytes and no file: {call!r:.200}")


def _files(call: tuple[Any, ...], result: Any) -> Iterator[Path]:
    """The file a call was about: the last path it was given, or the blob it has named."""
    if hasattr(call[0], "path") and isinstance(result, str):
        yield call[0].path(result)
    yield from (x for x in reversed(call) if isinstance(x, Path) and x.is_file())
