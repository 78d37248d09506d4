"""``perennial certs``, ``server`` and ``client``: a real federation in three commands."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Final

import typer
from filelock import FileLock, Timeout

from orchestrator.cli.connecting import client_options, in_bytes
from orchestrator.cli.output import console, saying
from orchestrator.cli.status_line import status_line
from orchestrator.deployment.flower import Address
from orchestrator.home import Home
from orchestrator.signals import handling
from strategies.errors import ConfigError, Fault
from strategies.types import client_ids

if TYPE_CHECKING:
    from orchestrator.deployment.client import ClientOptions
    from orchestrator.deployment.control import Connection
    from orchestrator.deployment.server_settings import ServerSettings

_LOOK_SECONDS: Final = 0.2


class Kind(StrEnum):
    """What a client machine is."""

    AUTO = "auto"
    EDGE = "edge"
    GPU = "gpu"
    CPU = "cpu"


RootCertificates = Annotated[
    Path | None,
    typer.Option(help="The federation's ca.crt. Default: the system's authorities."),
]
Insecure = Annotated[bool, typer.Option("--insecure", help="Plain text, no node keys.")]
TokenFile = Annotated[
    Path | None,
    typer.Option(help="The federation's operator.token; needed from another machine."),
]


def certs(
    to: Annotated[Path, typer.Option(help="The federation's certificate folder.")],
    host: Annotated[
        list[str] | None,
        typer.Option(help="A name or address by which clients reach the server; repeat it."),
    ] = None,
    nodes: Annotated[
        int, typer.Option(min=0, help="Make keys for this many clients, by their numbers.")
    ] = 0,
    node: Annotated[
        list[str] | None, typer.Option(help="Make a key for a client of this name; repeat it.")
    ] = None,
) -> None:
    """Make an authority, a server certificate and node keys, or add to a folder of them.

    To start: perennial certs --to certs --host server.example --nodes 4

    A node is registered by its .pub file lying in the nodes/ folder of the certificate folder that
    `perennial server` was given. Put a file there and the node is admitted, take it away and it is
    turned away; the server need not be restarted. Later nodes: --node NAME, on the same folder.
    """
    from orchestrator.deployment.certificates import CertificateFolder, make_certificates

    names = [*(client_ids(nodes) if nodes else ()), *(node or ())]
    folder = CertificateFolder(to.absolute())
    out = console()
    for written in make_certificates(folder, host or (), names):
        out.print(f"{written.path}  for {written.belongs}", highlight=False, soft_wrap=True)
    out.print(f"next: perennial server --certs {to}", highlight=False, soft_wrap=True)


def server(
    certs: Annotated[
        Path | None, typer.Option(help="Certificate folder, made by `perennial certs`.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "0.0.0.0",  # noqa: S104
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    insecure: Insecure = False,  # noqa: FBT002 - a command-line flag
) -> None:
    """Start a SuperLink, with TLS and node keys, and admit the nodes of the certificate folder.

    Runs are kept in this machine's data directory and run database (PERENNIAL_HOME,
    PERENNIAL_DATABASE). Programs on this machine may submit runs; from another one the federation's
    operator.token is needed. Who was refused is printed and logged. SIGTERM and Ctrl-C stop runs at
    a safe point and end everything.
    """
    address, out = Address(host=host, port=port), console()
    settings = _server_settings(certs, address, insecure=insecure)

    if insecure:
        out.print("[bold yellow]WARNING[/] --insecure: no encryption, and any node may take part")
    settings.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = FileLock(settings.folder / "server.lock", timeout=0)
    try:
        with lock:
            _keep_serving(settings, saying(out))
    except Timeout:
        found = f"{port}, in use by another `perennial server`"
        raise ConfigError("server", [Fault("--port", found, "a port of its own")]) from None


def _server_settings(certs: Path | None, address: Address, *, insecure: bool) -> ServerSettings:
    """What ``perennial server`` was told, with its run database there.

    Raises: ConfigError.
    """
    from orchestrator.deployment.certificates import CertificateFolder
    from orchestrator.deployment.server_settings import ServerSettings, require_certificates

    folder = CertificateFolder(certs.absolute()) if certs else None
    if insecure == bool(folder):
        found = "both" if insecure else "neither"
        hint = "make a folder with `perennial certs --to certs --host NAME --nodes N`"
        raise ConfigError("server", [Fault("--certs, --insecure", found, "--certs FOLDER", hint)])
    if folder:
        require_certificates(folder)
    home = Home.from_environment()
    home.store()
    return ServerSettings(address=address, certificates=folder, home=home)


def _keep_serving(settings: ServerSettings, say: Callable[[str], None]) -> None:
    from orchestrator.deployment.server import Server

    with _stop_requests() as stop:
        running = Server.prepare(settings, say)
        how = _how_to_submit(settings.address, settings.local)
        try:
            running.serve(stop.is_set, on_ready=lambda: say(how))
        finally:
            say("stopping")
            running.stop()


def client(  # noqa: PLR0913 - a command's options
    superlink: Annotated[str, typer.Option(help="The server's host:port.")],
    data: Annotated[Path, typer.Option(help="Folder that relative data paths start in.")],
    number: Annotated[int, typer.Option(min=0, help="Which client this is, counted from 0.")],
    clients: Annotated[int, typer.Option(min=1, help="How many the federation has.")],
    root_certificates: RootCertificates = None,
    auth_key: Annotated[
        Path | None, typer.Option(help="This node's private key, nodes/NAME.key.")
    ] = None,
    kind: Annotated[Kind, typer.Option(help="What this machine is.")] = Kind.AUTO,
    memory_limit: Annotated[
        str | None, typer.Option(help="What training may take, such as 2GB.")
    ] = None,
    uplink_limit: Annotated[
        str | None, typer.Option(help="Bytes per second sent, such as 500kB.")
    ] = None,
    insecure: Insecure = False,  # noqa: FBT002 - a command-line flag
    work: Annotated[
        Path | None, typer.Option(help="This client's own folder. Default: in PERENNIAL_HOME.")
    ] = None,
    trainer: Annotated[
        str | None,
        typer.Option(
            metavar="unix:PATH",
            help="A trainer kept running by others (clients.trainer_service). Default: start one.",
        ),
    ] = None,
    metrics_port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, help="Serve the trainer's Prometheus metrics here."),
    ] = None,
    metrics_host: Annotated[
        str, typer.Option(help="Address that --metrics-port listens on.")
    ] = "127.0.0.1",
) -> None:
    """Take part in a federation: start a trainer and a SuperNode, and keep them running.

    Examples are read from --data and nowhere else. Both processes are restarted after a failure,
    after ever longer waits; an unknown key or a wrong authority ends the command with exit code 1.
    SIGTERM and Ctrl-C let the answer under way be finished, a second one does not.
    """
    options = client_options(
        superlink=Address.parse(superlink, key="--superlink"),
        root_certificates=root_certificates,
        auth_key=auth_key,
        insecure=insecure,
        number=number,
        clients=clients,
        data=data,
        kind=str(kind),
        memory_limit_bytes=in_bytes(memory_limit, "--memory-limit"),
        uplink_limit_bytes_per_second=in_bytes(uplink_limit, "--uplink-limit"),
        work=work,
        trainer=trainer,
        metrics=Address(host=metrics_host, port=metrics_port) if metrics_port else None,
    )
    options.work.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = FileLock(options.work / "client.lock", timeout=0)
    try:
        with lock:
            _keep_running(options)
    except Timeout:
        found = f"{options.work}, in use by another `perennial client`"
        raise ConfigError("client", [Fault("--work", found, "a folder of its own")]) from None


def _keep_running(options: ClientOptions) -> None:
    from orchestrator.deployment.client import Client
    from orchestrator.deployment.processes import wait_until

    running = Client.prepare(options)
    with _stop_requests() as stop, status_line(running) as show:
        try:
            while not stop.is_set():
                running.tick(time.monotonic())
                show()
                stop.wait(_LOOK_SECONDS)
            stop.clear()
            show.say("finishing the answer under way, then stopping")
            finished = running.drain(lambda done, s: wait_until(lambda: done() or stop.is_set(), s))
            if not finished:
                show.say("stopped before the answer under way was finished")
        finally:
            running.end()


def _how_to_submit(address: Address, local: Connection) -> str:
    roots = f" --root-certificates {local.root_certificates}" if local.root_certificates else ""
    secure = "TLS, node keys" if local.root_certificates else "plain text"
    how = f"perennial run FILE --on {local.address}{roots or ' --insecure'}"
    return f"SuperLink at {address} ({secure}) · submit with: {how}"


@contextmanager
def _stop_requests() -> Iterator[threading.Event]:
    """An event that SIGTERM and Ctrl-C set, each time anew."""
    stop = threading.Event()

    def note(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    with handling(note):
        yield stop
