"""Who holds a run's lease, named so that its end can be seen from where it ran."""

from __future__ import annotations

import hashlib
import os
import platform
from pathlib import Path
from typing import Final
from uuid import uuid4

import psutil

_SEPARATOR: Final = "/"
_HOST_CHARACTERS: Final = 12  # a database keeps 64 of the whole name


def new_owner() -> str:
    """A name nobody else has: ``host/pid/start/machine/random``, of this process.

    ``machine`` is this boot of this machine and, in containers, this one's processes: a pid means
    something there alone.  ``start`` tells the process from a later one with the same pid.
    """
    pid = os.getpid()
    host = platform.node().replace(_SEPARATOR, "-")[:_HOST_CHARACTERS]
    parts = (host, str(pid), _started(pid) or "", _machine(), uuid4().hex[:8])
    return _SEPARATOR.join(parts)


def is_gone(owner: str) -> bool:
    """Whether ``owner`` was a process here that has ended; False where nobody here can know."""
    parts = owner.split(_SEPARATOR)
    if len(parts) != 5:
        return False
    _, pid, started, machine, _ = parts
    if machine != _machine() or not pid.isdigit() or not started:
        return False
    return _started(int(pid)) != started


def described(owner: str) -> str:
    """``owner`` for people: its process and host."""
    parts = owner.split(_SEPARATOR)
    return f"process {parts[1]} on {parts[0]}" if len(parts) == 5 else owner


def _started(pid: int) -> str | None:
    """When the process began, on a clock nobody sets where there is one; None if it has ended."""
    try:
        # Fields after the name, which may hold anything; the third is the state, the 22nd the tick.
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None if Path("/proc/self/stat").exists() else _started_elsewhere(pid)
    return None if fields[0] in ("Z", "X") else fields[19]


def _started_elsewhere(pid: int) -> str | None:
    """The same on systems without /proc."""
    try:
        process = psutil.Process(pid)
        ended = process.status() == psutil.STATUS_ZOMBIE
        return None if ended else f"{process.create_time():.0f}"
    except psutil.Error:
        return None


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
        boot += str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        boot = f"{psutil.boot_time():.0f}"
    return hashlib.sha256(f"{platform.node()} {boot}".encode()).hexdigest()[:12]
