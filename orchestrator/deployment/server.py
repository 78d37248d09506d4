"""The server's side of a federation: a SuperLink, and the node keys it admits."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import psutil

from orchestrator.deployment.certificates import CertificateFolder
from orchestrator.deployment.control import Connection, Control
from orchestrator.deployment.flower import TOKEN_VARIABLE, Address, flower_environment
from orchestrator.deployment.guard import Say
from orchestrator.deployment.keys import fingerprint, load_public_key, pem_of
from orchestrator.deployment.processes import Program, Running, descendants, end_all
from orchestrator.home import Home
from orchestrator.stopping import GRACE_SECONDS
from strategies.errors import ConfigError, Fault, PerennialError, TransportError

_READY_SECONDS: Final = 120.0
_STOP_SECONDS: Final = 15.0
_LOOK_EVERY_SECONDS: Final = 2.0
_ANYWHERE: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - looked up, not bound


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """How a SuperLink is started; ``certificates`` None means plain text and no node keys."""

    address: Address
    certificates: CertificateFolder | None
    home: Home

    @property
    def folder(self) -> Path:
        """The SuperLink's own: log and Flower home."""
        return superlink_folder(self.home, self.address.port)

    @property
    def local(self) -> Connection:
        """How this machine itself reaches the SuperLink."""
        host = _ANYWHERE.get(self.address.host, self.address.host)
        folder = self.certificates
        return Connection(
            address=Address(host=host, port=self.address.port),
            root_certificates=folder.authority if folder else None,
            insecure=folder is None,
            token=folder.token.read_text().strip() if folder else None,
        )


def superlink_folder(home: Home, port: int) -> Path:
    """Where the SuperLink of a port keeps its log and its Flower home."""
    return home.folder / f"superlink-{port}"


def require_certificates(folder: CertificateFolder) -> None:
    """Raises: ConfigError naming every file that is missing and the command that makes it."""
    wanted = (folder.authority, folder.server, folder.server_key, folder.token)
    hint = f"make it with `perennial certs --to {folder.root} --host NAME --nodes N`"
    faults = [
        Fault("--certs", f"no {path}", "a certificate folder", hint)
        for path in wanted
        if not path.is_file()
    ]
    if faults:
        raise ConfigError("server", faults)


@dataclass(slots=True)
class Server:
    """A SuperLink of ours, from its start to the end of everything it started."""

    settings: ServerSettings
    say: Say
    running: Running
    registry: Registry | None = None

    @classmethod
    def start(cls, settings: ServerSettings, say: Say) -> Server:
        """Start it; ``say`` hears who was refused."""

        def on_line(line: str) -> None:
            if line.startswith("refused "):
                say(line)

        folder, certificates = settings.folder, settings.certificates
        token = {TOKEN_VARIABLE: settings.local.token or ""} if certificates else {}
        program = Program(
            name="superlink",
            command=_command(settings),
            environment=flower_environment(folder / "flower", settings.home.environment() | token),
            log_path=folder / "superlink.log",
            on_line=on_line,
        )
        return cls(settings, say, Running.start(program))

    def wait_until_ready(self, stopped: Callable[[], bool]) -> None:
        """Until it answers, then admit the nodes; or until ``stopped``.

        Raises: TransportError if it ends or stays silent.
        """
        deadline = time.monotonic() + _READY_SECONDS
        while not stopped():
            self.require_alive()
            try:
                control = Control.open(self.settings.local)
            except TransportError as error:
                if time.monotonic() > deadline:
                    raise TransportError(
                        f"{error}; it has had {_READY_SECONDS:g} s, see {self.log_path}"
                    ) from None
                time.sleep(_LOOK_EVERY_SECONDS / 10)
            else:
                self._admit(control)
                return

    def _admit(self, control: Control) -> None:
        if self.settings.certificates is None:
            control.close()
            return
        self.registry = Registry(self.settings.certificates.nodes, control, self.say)
        self.registry.synchronise()

    def serve(self, stopped: Callable[[], bool]) -> None:
        """Follow the folder of node keys until ``stopped``.

        Raises: TransportError if the SuperLink ends by itself.
        """
        looked = time.monotonic()
        while not stopped():
            self.require_alive()
            if self.registry and time.monotonic() - looked > _LOOK_EVERY_SECONDS:
                self.registry.synchronise()
                looked = time.monotonic()
            time.sleep(0.2)

    def require_alive(self) -> None:
        """Raises: TransportError with the SuperLink's last words."""
        code = self.running.poll()
        if code is not None:
            last = "\n  ".join(line for line in list(self.running.lines)[-5:] if line.strip())
            raise TransportError(
                f"the SuperLink ended with code {code}; see {self.log_path}\n  {last}"
            )

    def stop(self) -> None:
        """Let runs under way stop at a safe point, then end the SuperLink and its helpers."""
        family = descendants(self.running.process.pid)
        end_all([p for p in family if _is_run(p)], grace_seconds=GRACE_SECONDS)
        self.running.end(_STOP_SECONDS)
        end_all(family, grace_seconds=1.0)

    @property
    def log_path(self) -> Path:
        """Everything the SuperLink and its runs print."""
        return self.running.program.log_path


def _command(settings: ServerSettings) -> list[str]:
    address, folder = settings.address, settings.certificates
    command = [
        sys.executable, "-m", "orchestrator.deployment.superlink",
        "--host", address.host, "--port", str(address.port),
        "--disable-runtime-dependency-installation",
    ]  # fmt: skip
    if folder is None:
        return [*command, "--insecure"]
    return [
        *command, "--enable-supernode-auth", "--ssl-ca-certfile", str(folder.authority),
        "--ssl-certfile", str(folder.server), "--ssl-keyfile", str(folder.server_key),
    ]  # fmt: skip


def _is_run(process: psutil.Process) -> bool:
    try:
        return any("flwr-serverapp" in word for word in process.cmdline()[:3])
    except psutil.Error:
        return False


@dataclass(slots=True)
class Registry:
    """The nodes a SuperLink admits are those whose public keys lie in ``folder``."""

    folder: Path
    control: Control
    say: Say
    _admitted: dict[Path, int] = field(default_factory=dict)
    _ignored: set[Path] = field(default_factory=set)

    def synchronise(self) -> None:
        """Admit keys that have come, and turn away those that are gone."""
        present = set(self.folder.glob("*.pub"))
        for path in sorted(present - self._admitted.keys() - self._ignored):
            self._admit(path)
        for path in sorted(self._admitted.keys() - present):
            self.control.unregister(self._admitted.pop(path))
            self.say(f"node {path.stem}: key withdrawn, no longer admitted")
        self._ignored &= present

    def _admit(self, path: Path) -> None:
        try:
            key = load_public_key(path)
            self._admitted[path] = self.control.register(pem_of(key), path.stem)
        except PerennialError as error:
            self._ignored.add(path)  # said once, not every two seconds
            self.say(f"node {path.stem}: not admitted: {error}")
        else:
            self.say(f"node {path.stem}: admitted by key {fingerprint(key)}")
