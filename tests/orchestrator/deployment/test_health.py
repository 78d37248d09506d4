"""Whether a part of ours answers, as the probes of containers ask; and trainers of others."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import grpc
import pytest
from grpc_health.v1.health import HealthServicer
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server

from orchestrator.cli.connecting import client_options
from orchestrator.deployment.client import Client, _programs
from orchestrator.deployment.flower import Address
from orchestrator.deployment.health import main, trouble
from orchestrator.deployment.reading import NodeSigns
from strategies.errors import ConfigError


class Well(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def web():
    server = HTTPServer(("127.0.0.1", 0), Well)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@contextmanager
def trainer(path):
    health, server = HealthServicer(), grpc.server(ThreadPoolExecutor(1))
    add_HealthServicer_to_server(health, server)
    server.add_insecure_port(f"unix:{path}")
    server.start()
    try:
        yield health
    finally:
        server.stop(0).wait()


def test_http(web):
    assert trouble(f"{web}/health") is None
    assert "404" in trouble(f"{web}/elsewhere")
    assert main([f"{web}/health"]) == 0


def test_who_does_not_answer_is_not_well(tmp_path, capsys):
    assert "does not answer" in trouble("https://127.0.0.1:1/health")
    assert "UNAVAILABLE" in trouble(f"unix:{tmp_path}/none.sock", 1.0)
    assert "no address" in trouble("ftp://127.0.0.1/")
    assert main(["http://127.0.0.1:1/"]) == 1
    assert "127.0.0.1:1" in capsys.readouterr().err


def test_a_trainer_says_when_it_takes_no_work(tmp_path):
    with trainer(tmp_path / "t.sock") as health:
        assert trouble(f"unix:{tmp_path}/t.sock") is None
        health.enter_graceful_shutdown()
        assert "takes no work" in trouble(f"unix:{tmp_path}/t.sock")


def options(tmp_path, **changes):
    given = {
        "superlink": Address(host="127.0.0.1", port=1),
        "root_certificates": None,
        "auth_key": None,
        "insecure": True,
        "number": 0,
        "clients": 1,
        "data": tmp_path,
        "kind": "auto",
        "memory_limit_bytes": None,
        "uplink_limit_bytes_per_second": None,
        "work": tmp_path / "work",
        "trainer": f"unix:{tmp_path}/t.sock",
        "metrics": None,
    }
    return client_options(**(given | changes))


def test_a_client_waits_for_a_trainer_of_others_and_leaves_it_running(tmp_path):
    client = Client.prepare(options(tmp_path))
    client.tick(0.0)
    assert client.supernode.process is None
    assert "no trainer answers" in client.status(0.0)
    with trainer(tmp_path / "t.sock"):
        client.trainer.tick(1.5)
        assert client.trainer.process is not None
        assert "trainer warm" in client.status(1.5)
        client.end()
        assert trouble(f"unix:{tmp_path}/t.sock") is None


def test_its_node_is_told_the_socket_and_no_token(tmp_path):
    given = options(tmp_path)
    _, supernode = _programs(given, NodeSigns(), given.trainer)
    assert supernode.environment["PERENNIAL_TRAINER"] == f"unix:{tmp_path}/t.sock"
    assert "PERENNIAL_TRAINER_TOKEN_FILE" not in supernode.environment


@pytest.mark.parametrize(
    "changes",
    [
        {"trainer": "127.0.0.1:80"},
        {"trainer": "unix:relative.sock"},
        {"kind": "gpu"},
        {"memory_limit_bytes": 1},
        {"uplink_limit_bytes_per_second": 1},
        {"metrics": Address(host="127.0.0.1", port=1)},
    ],
)
def test_what_belongs_to_that_trainer_is_not_said_to_the_client(tmp_path, changes):
    with pytest.raises(ConfigError, match="--trainer"):
        options(tmp_path, **changes)
