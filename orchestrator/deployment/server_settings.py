"""How a SuperLink is started: its settings, its folder, its command."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from orchestrator.deployment.certificates import CertificateFolder
from orchestrator.deployment.control import Connection
from orchestrator.deployment.flower import TOKEN_VARIABLE, Address, flower_environment
from orchestrator.deployment.guard import Say
from orchestrator.deployment.processes import Program
from orchestrator.home import Home
from strategies.errors import ConfigError, Fault

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
    def log_path(self) -> Path:
        """Everything the SuperLink and its runs print."""
        return self.folder / "superlink.log"

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


def program_of(settings: ServerSettings, say: Say) -> Program:
    """The SuperLink's process; ``say`` hears whom it refuses."""

    def on_line(line: str) -> None:
        if line.startswith("refused "):
            say(line)

    token = {TOKEN_VARIABLE: settings.local.token or ""} if settings.certificates else {}
    return Program(
        name="superlink",
        command=_command(settings),
        environment=flower_environment(
            settings.folder / "flower", settings.home.environment() | token
        ),
        log_path=settings.log_path,
        on_line=on_line,
    )


def last_words(code: int, lines: Sequence[str], log_path: Path) -> str:
    """Why a SuperLink is gone: its code and its last lines."""
    last = "\n  ".join(line for line in list(lines)[-5:] if line.strip())
    return f"the SuperLink ended with code {code}; see {log_path}\n  {last}"


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
