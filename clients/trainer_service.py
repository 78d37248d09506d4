"""The warm trainer: a long-lived process that answers over gRPC with a model that stays loaded.

``python -m clients.trainer_service --address unix:/path/trainer.sock --settings FILE.json``

A Unix socket is for its owner alone; a loopback port needs a token.  Health is told to anybody, by
``grpc.health.v1``.  SIGTERM abandons the answer that is being worked on, with nothing of it saved.
"""

from __future__ import annotations

import argparse
import hmac
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import grpc
from grpc_health.v1.health import HealthServicer
from grpc_health.v1.health_pb2 import HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server

from clients import profile as device
from clients.addresses import check_address, claim_socket, is_unix, read_token, release_socket
from clients.answering import Listener, Trainer
from clients.bench import Bench
from clients.framing import SERVICE
from clients.jobs import UNOBSERVED, Observer
from clients.proto.trainer_pb2_grpc import add_TrainerServicer_to_server
from clients.servicer import Servicer
from clients.settings import ClientSettings, read_settings
from clients.telemetry import TrainerMetrics, expose
from clients.trainer import LocalTrainer
from strategies.errors import ConfigError, Fault, PerennialError

log = logging.getLogger(__name__)

_THREADS: Final = 16  # callers that wait; the work itself has one thread
_GRACE_SECONDS: Final = 10.0
_OPTIONS: Final = (
    ("grpc.so_reuseport", 0),  # a second trainer on a taken port is a fault, not a partner
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),  # stubs look whether we are alive
)


@dataclass(frozen=True, slots=True)
class Guard(grpc.ServerInterceptor):  # type: ignore[misc]  # grpc is untyped
    """Lets nobody in without the token, except to ask for health."""

    token: str = field(repr=False)

    def intercept_service(self, continuation: Callable[[Any], Any], details: Any) -> Any:
        """``details`` are gRPC's of the call."""
        if details.method.startswith("/grpc.health.v1."):
            return continuation(details)
        given = dict(details.invocation_metadata).get("authorization", "")
        if hmac.compare_digest(str(given).encode(), f"Bearer {self.token}".encode()):
            return continuation(details)
        return grpc.unary_unary_rpc_method_handler(_refuse)


def _refuse(_: object, context: grpc.ServicerContext) -> None:
    context.abort(grpc.StatusCode.UNAUTHENTICATED, "wrong or missing token; see --token-file")


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """A trainer that is listening on ``address``."""

    address: str
    bench: Bench
    server: grpc.Server
    health: HealthServicer

    def stop(self, grace_seconds: float = _GRACE_SECONDS) -> bool:
        """Refuse new work, abandon the current; whether it ended within ``grace_seconds``."""
        self.health.enter_graceful_shutdown()
        ended = self.bench.close(grace_seconds)
        self.server.stop(grace=1.0).wait()  # callers are told why
        release_socket(self.address)
        return ended


def serve(
    make: Callable[[Listener], Trainer],
    address: str,
    *,
    token: str | None = None,
    max_message_bytes: int,
    observer: Observer = UNOBSERVED,
) -> Serving:
    """Start listening; port 0 becomes a free one.

    Raises: ConfigError if the address is not ours alone, is taken, or lacks its token.
    """
    check_address(address, token)
    server = grpc.server(
        ThreadPoolExecutor(_THREADS), interceptors=[Guard(token)] if token else [], options=_OPTIONS
    )
    bench, health = Bench(make, observer=observer), HealthServicer()
    add_TrainerServicer_to_server(Servicer(bench, max_message_bytes), server)
    add_HealthServicer_to_server(health, server)
    health.set(SERVICE, HealthCheckResponse.SERVING)
    bound = _bind(server, address)
    server.start()
    return Serving(address=bound, bench=bench, server=server, health=health)


def _bind(server: grpc.Server, address: str) -> str:
    """Raises: ConfigError if nobody can listen there."""
    try:
        if not is_unix(address):
            port = server.add_insecure_port(address)
            return f"{address.rpartition(':')[0]}:{port}"
        claim_socket(address)
        before = os.umask(0o177)  # the socket is made with mode 0600, never wider
        try:
            server.add_insecure_port(address)
        finally:
            os.umask(before)
    except (RuntimeError, OSError) as error:
        fault = Fault("address", address, "one that can be listened on", str(error))
        raise ConfigError("trainer", [fault]) from None
    return address


def _arguments(given: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="clients.trainer_service", description=__doc__)
    parser.add_argument("--address", required=True, help="unix:/path or 127.0.0.1:PORT, 0 for any")
    parser.add_argument("--settings", required=True, type=Path, help="ClientSettings as JSON")
    parser.add_argument("--token-file", type=Path, help="what callers must show; needed for a port")
    parser.add_argument(
        "--idle-seconds", type=float, default=600.0, help="after which the model is dropped"
    )
    parser.add_argument("--metrics-host", default="127.0.0.1", help="where --metrics-port is open")
    parser.add_argument("--metrics-port", type=int, help="for Prometheus; 0 for any. Default: none")
    return parser.parse_args(given)


def _of_a_device(settings: ClientSettings) -> ClientSettings:
    """A trainer with a process of its own has a device of its own, whatever was said of that."""
    return replace(settings, kind=settings.kind or "auto")


def main(given: list[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT; the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    arguments, stop = _arguments(given), threading.Event()
    metrics = TrainerMetrics()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        settings = _of_a_device(read_settings(arguments.settings))
        token = read_token(arguments.token_file) if arguments.token_file else None
        if arguments.metrics_port is not None:
            where = expose(metrics, arguments.metrics_host, arguments.metrics_port)
            log.info("metrics at %s", where)
        serving = serve(
            partial(LocalTrainer, settings),
            arguments.address,
            token=token,
            max_message_bytes=settings.max_message_bytes,
            observer=metrics,
        )
    except PerennialError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    metrics.watch(serving.bench.status, device.used_memory_bytes)
    sys.stdout.write(f"trainer listening on {serving.address}\n")
    sys.stdout.flush()
    while not stop.wait(1.0):
        if serving.bench.forget_if_idle(arguments.idle_seconds):
            log.info("idle for %g s: dropped the model", arguments.idle_seconds)
    if not serving.stop():
        log.warning("the answer at hand did not end in %g s; leaving it", _GRACE_SECONDS)
        logging.shutdown()
        os._exit(0)  # a thread inside torch cannot be asked; what is on disk is whole
    return 0


if __name__ == "__main__":
    sys.exit(main())
