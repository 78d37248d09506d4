"""An operator's hand on a SuperLink: register nodes, submit runs, ask how they are, stop them."""

from __future__ import annotations

import hashlib
import json
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, TypeVar

import httpx
from flwr.cli.build import build_fab_from_files
from flwr.common.serde import fab_to_proto, user_config_to_proto
from flwr.proto.control_pb2 import (
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    UnregisterNodeRequest,
)
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.error import FlowerError
from flwr.supercore.fab import Fab
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufRequestContext

from orchestrator.deployment.flower import Address
from orchestrator.deployment.guard import NODES_ADMITTED
from orchestrator.deployment.probe import probe
from strategies.errors import RefusedError, TransportError

_T = TypeVar("_T")
# The app itself is installed on both sides, so its bundle only says where to find it.
_APP: Final = """[project]
name = "perennial"
version = "{version}"
description = "Continual federated fine-tuning"
license = "Apache-2.0"

[tool.flwr.app]
publisher = "perennial"

[tool.flwr.app.components]
serverapp = "orchestrator.server_app:app"
clientapp = "clients.client_app:app"

[tool.flwr.app.config]
example = "digits"
config = ""
run-id = ""
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """How to reach a SuperLink: ``token`` is needed from another machine than its own."""

    address: Address
    root_certificates: Path | None
    insecure: bool
    token: str | None = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowerStatus:
    """What Flower knows of a run: status, how it ended (if it has), and why."""

    status: str
    ended: str
    details: str


@dataclass(frozen=True, slots=True)
class Control:
    """A client of the Control API."""

    connection: Connection
    client: ControlHttpClient

    @classmethod
    def open(cls, connection: Connection) -> Control:
        """Connect.

        Raises: TransportError if nobody answers, RefusedError for another authority or no TLS.
        """
        probe(connection.address, connection.root_certificates, insecure=connection.insecure)
        roots = connection.root_certificates
        client = ControlHttpClient.from_server_address(
            server_address=str(connection.address),
            insecure=connection.insecure,
            root_certificates=roots.read_bytes() if roots else None,
            interceptors=[
                RuntimeVersionHttpInterceptor(component_name="flwr CLI"),
                _Bearer(connection.token),
            ],
        )
        return cls(connection, client)

    def close(self) -> None:
        """Close the connection."""
        self.client.close()

    def register(self, public_key: bytes, name: str) -> int:
        """Admit a node by its public key in PEM; the node's id."""
        request = RegisterNodeRequest(public_key=public_key, name=name)
        return int(self._call(self.client.RegisterNode, request).node_id)

    def unregister(self, node_id: int) -> None:
        """Admit a node no longer."""
        self._call(self.client.UnregisterNode, UnregisterNodeRequest(node_id=node_id))

    def let_nodes_in(self) -> None:
        """Say that the nodes are registered: until then they are asked to come back later."""
        roots = self.connection.root_certificates
        trusted = ssl.create_default_context(cafile=roots) if roots else True
        scheme = "http" if self.connection.insecure else "https"
        url = f"{scheme}://{self.connection.address}{NODES_ADMITTED}"
        self._call(lambda _: httpx.post(url, verify=trusted).raise_for_status(), None)

    def submit(self, run_config: Mapping[str, str]) -> int:
        """Start our app with these values in its run config; Flower's id of the run."""
        content = build_fab_from_files(
            {"pyproject.toml": _APP.format(version=version("perennial")).encode()}
        )[0]
        fab = Fab(hashlib.sha256(content).hexdigest(), content, {})
        request = StartRunRequest(
            fab=fab_to_proto(fab), override_config=user_config_to_proto(dict(run_config))
        )
        answer = self._call(self.client.StartRun, request)
        if not answer.HasField("run_id"):
            raise TransportError(f"the SuperLink at {self.connection.address} took no run")
        return int(answer.run_id)

    def status(self, run: int) -> FlowerStatus:
        """How a run is doing."""
        answer = self._call(self.client.ListRuns, ListRunsRequest(run_id=run))
        status = answer.run_dict[run].status
        return FlowerStatus(status=status.status, ended=status.sub_status, details=status.details)

    def stop(self, run: int) -> None:
        """Have a run stopped."""
        self._call(self.client.StopRun, StopRunRequest(run_id=run))

    def _call(self, method: Callable[[Any], _T], request: object) -> _T:
        """Any: each request has its own generated class."""
        address = self.connection.address
        try:
            return method(request)
        except httpx.HTTPStatusError as error:
            reason = _reason(error.response)
            if error.response.status_code in (401, 403):
                hint = "; give the federation's operator.token as --token-file"
                raise RefusedError(f"{address} refused: {reason}{hint}") from None
            raise TransportError(f"the SuperLink at {address} refused: {reason}") from None
        except httpx.HTTPError as error:
            raise TransportError(f"the SuperLink at {address} does not answer: {error}") from None


@dataclass(frozen=True, slots=True)
class _Bearer:
    """Adds the operator's token to every request."""

    token: str | None = field(repr=False)

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        if self.token:
            context.request.headers["Authorization"] = f"Bearer {self.token}"
        return call_next(context)


def _reason(response: httpx.Response) -> str:
    if flower := FlowerError.from_json(response.text):
        return f"{flower.message}{f' ({flower.public_details})' if flower.public_details else ''}"
    try:
        body = json.loads(response.text)
    except ValueError:
        body = None
    detail = body.get("detail") if isinstance(body, dict) else None
    return str(detail or f"HTTP status {response.status_code}")
