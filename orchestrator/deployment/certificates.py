"""A federation's certificates and keys: one authority, one server, a key pair per node.

Layout of a folder::

    ca.crt  ca.key              the authority; ca.crt goes to every client, ca.key to nobody
    server.crt  server.key      the SuperLink's
    operator.token              lets its holder submit runs from another machine
    nodes/NAME.key  NAME.pub    a client's private key, and what the server knows it by

All files are readable by their owner alone.  TLS keys are on P-256, node keys on P-384, in the
OpenSSH format that Flower reads.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec

from orchestrator.deployment.authority import as_address, authority_certificate, server_certificate
from orchestrator.deployment.keys import load_tls_key, node_key_file, public_key_file, tls_key_file
from strategies.errors import ConfigError, Fault

_NODE_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_HOST_NAME: Final = re.compile(r"(\*\.)?([A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.?)+")


@dataclass(frozen=True, slots=True)
class CertificateFolder:
    """Where a federation's certificates lie."""

    root: Path

    @property
    def authority(self) -> Path:
        """The certificate that clients trust."""
        return self.root / "ca.crt"

    @property
    def authority_key(self) -> Path:
        """Signs server certificates; needed again only to make another one."""
        return self.root / "ca.key"

    @property
    def server(self) -> Path:
        """The SuperLink's certificate."""
        return self.root / "server.crt"

    @property
    def server_key(self) -> Path:
        """The SuperLink's private key."""
        return self.root / "server.key"

    @property
    def token(self) -> Path:
        """A secret that lets its holder submit runs from another machine."""
        return self.root / "operator.token"

    @property
    def nodes(self) -> Path:
        """Key pairs of the nodes."""
        return self.root / "nodes"

    def private_key(self, node: str) -> Path:
        """What a client proves itself with."""
        return self.nodes / f"{node}.key"

    def public_key(self, node: str) -> Path:
        """What the server knows a client by."""
        return self.nodes / f"{node}.pub"


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """A file that was made, and who needs it."""

    path: Path
    belongs: str


def make_certificates(
    folder: CertificateFolder, hosts: Sequence[str], nodes: Sequence[str]
) -> list[Written]:
    """Make what was asked for and is not there yet; the authority first, if the folder has none.

    Raises: ConfigError with every fault, before anything is written; nothing is overwritten.
    """
    if faults := _faults(folder, hosts, nodes):
        raise ConfigError("certs", faults)
    for path in (folder.root, folder.nodes):
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    written = list[Written]()

    def write(path: Path, content: bytes, belongs: str) -> None:
        _write_private(path, content)
        written.append(Written(path=path, belongs=belongs))

    if not folder.authority_key.exists():
        _make_authority(folder, write)
    if hosts:
        _make_server(folder, hosts, write)
    for node in nodes:
        key = ec.generate_private_key(ec.SECP384R1())
        write(folder.private_key(node), node_key_file(key), f"client {node}, and nobody else")
        write(folder.public_key(node), public_key_file(key, node), "the server")
    return written


def _faults(folder: CertificateFolder, hosts: Sequence[str], nodes: Sequence[str]) -> list[Fault]:
    faults = [
        Fault("--node", repr(node), "letters, digits, dots, dashes and underscores, at most 64")
        for node in nodes
        if not _NODE_NAME.fullmatch(node)
    ]
    faults += [
        Fault("--host", repr(host), "a DNS name or an IP address, without a port")
        for host in hosts
        if not _is_host(host)
    ]
    if repeated := sorted({node for node in nodes if nodes.count(node) > 1}):
        faults.append(Fault("--node", f"{', '.join(repeated)} twice", "different names"))
    if not folder.authority_key.exists() and not hosts:
        hint = "say by which names and addresses clients reach the server"
        faults.append(Fault("--host", "nothing", "at least one for a new folder", hint))
    elif not hosts and not nodes:
        hint = "say --node NAME for a new node, or --host for a new server certificate"
        faults.append(Fault("certs", "nothing to make", "--host, --node or --nodes", hint))
    wanted = [
        path for node in nodes for path in (folder.private_key(node), folder.public_key(node))
    ]
    if hosts:
        wanted += [folder.server, folder.server_key]
    if not folder.authority_key.exists():
        wanted += [folder.authority, folder.token]
    hint = "nothing is overwritten: choose another name or folder, or remove the file"
    return faults + [
        Fault(str(path), "a file", "a path that is free", hint) for path in wanted if path.exists()
    ]


def _is_host(text: str) -> bool:
    return as_address(text) is not None or bool(_HOST_NAME.fullmatch(text))


_Write = Callable[[Path, bytes, str], None]


def _make_authority(folder: CertificateFolder, write: _Write) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    write(folder.authority_key, tls_key_file(key), "nobody: keep it offline")
    write(folder.authority, authority_certificate(key), "the server and every client")
    write(folder.token, secrets.token_hex(32).encode(), "the server, and who submits runs")


def _make_server(folder: CertificateFolder, hosts: Sequence[str], write: _Write) -> None:
    authority_pem, authority_key = folder.authority.read_bytes(), load_tls_key(folder.authority_key)
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = server_certificate(key.public_key(), hosts, authority_pem, authority_key)
    write(folder.server_key, tls_key_file(key), "the server, and nobody else")
    write(folder.server, certificate, "the server")


def _write_private(path: Path, content: bytes) -> None:
    """Readable by the owner alone from its first byte on; fails if the file exists."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
