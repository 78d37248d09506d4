"""Options of the commands that deal with a SuperLink: read, checked together, made into values."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from orchestrator.deployment.flower import Address
from orchestrator.home import Home
from strategies.errors import ConfigError, Fault
from strategies.types import client_ids

if TYPE_CHECKING:
    from orchestrator.deployment.client import ClientOptions
    from orchestrator.deployment.control import Connection

_UNITS: Final = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?", re.IGNORECASE)


def client_options(  # noqa: PLR0913 - the command's options, checked together
    *,
    superlink: Address,
    root_certificates: Path | None,
    auth_key: Path | None,
    insecure: bool,
    number: int,
    clients: int,
    data: Path,
    kind: str,
    memory_limit_bytes: int | None,
    uplink_limit_bytes_per_second: int | None,
    work: Path | None,
    trainer: str | None,
    metrics: Address | None,
) -> ClientOptions:
    """What ``perennial client`` was told, checked together.

    Raises: ConfigError with every fault.
    """
    from orchestrator.deployment.client import ClientOptions
    from orchestrator.deployment.keys import fingerprint, load_node_key

    faults = list[Fault]()
    if number >= clients:
        faults.append(Fault("--number", str(number), f"0 to {clients - 1}, below --clients"))
    if not data.is_dir():
        faults.append(Fault("--data", f"no folder at {data}", "the folder of the examples"))
    if root_certificates and not root_certificates.is_file():
        found = f"no file at {root_certificates}"
        faults.append(Fault("--root-certificates", found, "the federation's ca.crt"))
    if insecure and (auth_key or root_certificates):
        found = "--insecure with --auth-key or --root-certificates"
        faults.append(Fault("--insecure", found, "one or the other"))
    if not insecure and auth_key is None:
        hint = "the federation's operator has it; --insecure is for servers started so"
        faults.append(Fault("--auth-key", "nothing", "this node's private key", hint))
    own = (memory_limit_bytes, uplink_limit_bytes_per_second, metrics)
    faults += _trainer_faults(trainer, kind, own)
    if faults:
        raise ConfigError("client", faults)
    public = load_node_key(auth_key, key="--auth-key") if auth_key else None
    client_id = client_ids(clients)[number]
    return ClientOptions(
        superlink=superlink,
        root_certificates=root_certificates.absolute() if root_certificates else None,
        auth_key=auth_key.absolute() if auth_key else None,
        fingerprint=fingerprint(public) if public else "",
        insecure=insecure,
        number=number,
        clients=clients,
        data=data.resolve(),
        kind=kind,
        memory_limit_bytes=memory_limit_bytes,
        uplink_limit_bytes_per_second=uplink_limit_bytes_per_second,
        work=(work or Home.from_environment().folder / "nodes" / client_id).absolute(),
        trainer=trainer,
        metrics=metrics,
    )


def _trainer_faults(trainer: str | None, kind: str, own: Sequence[object]) -> list[Fault]:
    """What is wrong with ``--trainer``; ``own`` and kind are told to that trainer itself."""
    if trainer is None:
        return []
    faults = list[Fault]()
    if not trainer.removeprefix("unix:").startswith("/") or not trainer.startswith("unix:"):
        faults.append(Fault("--trainer", repr(trainer), "unix: and an absolute path"))
    if kind != "auto" or any(each is not None for each in own):
        found = "--trainer with --kind, --memory-limit, --uplink-limit or --metrics-port"
        faults.append(Fault("--trainer", found, "these told to that trainer itself"))
    return faults


def connection(
    superlink: str, root_certificates: Path | None, token_file: Path | None, *, insecure: bool
) -> Connection:
    """How ``--on`` and the options beside it reach a SuperLink.

    Raises: ConfigError.
    """
    from orchestrator.deployment.control import Connection

    for key, path in (("--root-certificates", root_certificates), ("--token-file", token_file)):
        if path and not path.is_file():
            fault = Fault(key, f"no file at {path}", "a file of the certificate folder")
            raise ConfigError("command line", [fault])
    return Connection(
        address=Address.parse(superlink, key="--on"),
        root_certificates=root_certificates,
        insecure=insecure,
        token=token_file.read_text().strip() if token_file else None,
    )


def in_bytes(text: str | None, key: str) -> int | None:
    """A size such as ``500kB``, ``2GB`` or ``1.5GiB``.

    Raises: ConfigError.
    """
    if text is None:
        return None
    found = _SIZE.fullmatch(text.strip())
    if not found or float(found[1]) == 0:
        raise ConfigError("client", [Fault(key, repr(text), "a size such as 500kB, 2GB or 1.5GiB")])
    unit = found[2].upper()
    base = 1024 ** "_KMGT".index(unit) if found[3] and unit else _UNITS[unit]
    return round(float(found[1]) * base)
