"""Machines of our own: network namespaces on one bridge, each behind a line of its own speed."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass, field

SLOW = "256kbit"
DELAY = "200ms"


def missing() -> str | None:
    """Why no network can be made here; None if one can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if not (shutil.which("ip") and shutil.which("tc")):
        return "no `ip` and `tc` here; install the package `iproute2`"
    if subprocess.run(["ip", "netns", "list"], capture_output=True, check=False).returncode:
        return "this kernel gives no network namespaces"
    return None


@dataclass(slots=True)
class Network:
    """A bridge 10.X.Y.1 that the server listens on, and a namespace per client."""

    name: str = field(default_factory=lambda: f"pn{os.getpid() % 100_000}")
    spaces: list[str] = field(default_factory=list)

    @property
    def _prefix(self) -> str:
        number = os.getpid()
        return f"10.{64 + number // 250 % 128}.{number % 250}"

    @property
    def host(self) -> str:
        return f"{self._prefix}.1"

    def make(self) -> None:
        _run("ip", "link", "add", self.name, "type", "bridge")
        _run("ip", "address", "add", f"{self.host}/24", "dev", self.name)
        _run("ip", "link", "set", self.name, "up")

    def machine(self, *, slow: bool) -> list[str]:
        """A new machine; the command that runs others on it."""
        number = len(self.spaces)
        space, outer, inner = f"{self.name}-{number}", f"{self.name}o{number}", "up0"
        _run("ip", "netns", "add", space)
        self.spaces.append(space)
        inside = ["ip", "netns", "exec", space]
        _run("ip", "link", "add", outer, "type", "veth", "peer", "name", inner, "netns", space)
        _run("ip", "link", "set", outer, "master", self.name, "up")
        address = f"{self._prefix}.{10 + number}/24"
        _run(*inside, "ip", "address", "add", address, "dev", inner)
        _run(*inside, "ip", "link", "set", inner, "up")
        _run(*inside, "ip", "link", "set", "lo", "up")
        if slow:
            _slow_down([], outer)
            _slow_down(inside, inner)
        return inside

    def remove(self) -> None:
        for space in self.spaces:
            subprocess.run(["ip", "netns", "delete", space], check=False, capture_output=True)
        subprocess.run(["ip", "link", "delete", self.name], check=False, capture_output=True)


def _slow_down(inside: list[str], device: str) -> None:
    """One direction of a line: slow and late, or slow alone where the kernel has no netem."""
    change = [*inside, "tc", "qdisc", "replace", "dev", device, "root"]
    late = [*change, "netem", "delay", DELAY, "rate", SLOW]
    if subprocess.run(late, capture_output=True, check=False).returncode:
        _run(*change, "tbf", "rate", SLOW, "burst", "16kb", "latency", "2s")


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
