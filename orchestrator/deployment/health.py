"""``python -m orchestrator.deployment.health ADDRESS``: ask a part of ours how it is; 0 if well.

``https://HOST:PORT/PATH`` or ``http://…`` must answer 200.  A certificate is not checked: the
question is whether this very process answers, and nothing secret is said.  ``unix:PATH`` is a warm
trainer's socket, asked by ``grpc.health.v1``.  Made for the probes of containers.
"""

from __future__ import annotations

import argparse
import ssl
import sys
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Final
from urllib.parse import urlsplit

_SECONDS: Final = 5.0
_UNIX: Final = "unix:"


def trouble(address: str, seconds: float = _SECONDS) -> str | None:
    """What is wrong with the part at ``address``; None if it is well."""
    if address.startswith(_UNIX):
        return _trainers_trouble(address, seconds)
    url = urlsplit(address)
    if url.scheme not in ("http", "https") or not url.hostname:
        return f"{address!r} is no address; expected https://…, http://… or unix:PATH"
    try:
        status = _get(url.scheme, url.netloc, url.path or "/", seconds)
    except (OSError, HTTPException) as error:
        return f"{address} does not answer: {error}"
    return None if status == 200 else f"{address} answered with HTTP status {status}"


def _get(scheme: str, host: str, path: str, seconds: float) -> int:
    connection = HTTPConnection(host, timeout=seconds)
    if scheme == "https":
        unchecked = ssl.create_default_context()
        unchecked.check_hostname, unchecked.verify_mode = False, ssl.CERT_NONE
        connection = HTTPSConnection(host, timeout=seconds, context=unchecked)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    finally:
        connection.close()


def _trainers_trouble(address: str, seconds: float) -> str | None:
    import grpc
    from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
    from grpc_health.v1.health_pb2_grpc import HealthStub

    options = (("grpc.default_authority", "localhost"),)
    with grpc.insecure_channel(address, options=options) as channel:
        try:
            found = HealthStub(channel).Check(HealthCheckRequest(), timeout=seconds)
        except grpc.RpcError as error:
            return f"no trainer answers at {address}: {error.code().name}"
    well = found.status == HealthCheckResponse.SERVING
    return None if well else f"the trainer at {address} takes no work now"


def main(given: list[str] | None = None) -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(prog="orchestrator.deployment.health", description=__doc__)
    parser.add_argument("address", help="https://HOST:PORT/PATH, http://… or unix:PATH")
    found = trouble(parser.parse_args(given).address)
    if found:
        sys.stderr.write(f"{found}\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
