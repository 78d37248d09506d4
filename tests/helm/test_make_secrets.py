"""The Job that makes certificates, against an API server of a few lines."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from cryptography import x509

from orchestrator.deployment.keys import load_node_key

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[2] / "helm" / "perennial" / "files" / "make_secrets.py"
URL = "/api/v1/namespaces/lab/secrets"


class Kept(BaseHTTPRequestHandler):
    """Secrets, as the API server answers."""

    secrets: dict
    calls: list

    def answer(self, status, body):
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_GET(self):
        assert self.headers["Authorization"] == "Bearer letmein"
        found = self.secrets.get(self.path.removeprefix(f"{URL}/"))
        self.answer(200 if found else 404, found or {})

    def change(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        name = body["metadata"]["name"]
        assert self.path == (URL if self.command == "POST" else f"{URL}/{name}")
        assert (self.command == "POST") is (name not in self.secrets)
        self.secrets[name] = body
        self.calls.append(name)
        self.answer(200, body)

    do_POST = change  # noqa: N815 - the library's names
    do_PUT = change  # noqa: N815

    def log_message(self, *_):
        pass


@pytest.fixture
def cluster(tmp_path):
    pod, programs = tmp_path / "pod", tmp_path / "bin"
    pod.mkdir()
    (pod / "namespace").write_text("lab")
    (pod / "token").write_text("letmein\n")
    programs.mkdir()
    perennial = programs / "perennial"
    perennial.write_text(f"#!{sys.executable}\nfrom orchestrator.cli import main\nmain()\n")
    perennial.chmod(0o755)
    handler = type("Handler", (Kept,), {"secrets": {}, "calls": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def run(*arguments):
        handler.calls.clear()
        api = f"http://127.0.0.1:{server.server_port}"
        subprocess.run(
            [sys.executable, SCRIPT, "--prefix", "demo", "--api", api, "--pod", pod, *arguments],
            check=True,
            env={**os.environ, "PATH": f"{programs}:{os.environ['PATH']}",
                 "PYTHONPATH": str(SCRIPT.parents[3])},
        )  # fmt: skip
        return list(handler.calls)

    yield handler.secrets, run
    server.shutdown()
    server.server_close()


def data(secrets, name, key):
    return base64.b64decode(secrets[f"demo-{name}"]["data"][key])


def test_it_makes_everything_once_and_then_what_is_missing(cluster, tmp_path):
    secrets, run = cluster
    given = ("--host=demo-superlink", "--host=127.0.0.1", "--node=gpu-0")
    assert run(*given) == ["demo-nodes", "demo-tls", "demo-operator", "demo-authority"]
    assert secrets["demo-tls"]["type"] == "kubernetes.io/tls"
    certificate = x509.load_pem_x509_certificate(data(secrets, "tls", "tls.crt"))
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert "demo-superlink" in names.get_values_for_type(x509.DNSName)
    (tmp_path / "key").write_bytes(data(secrets, "nodes", "gpu-0.key"))
    load_node_key(tmp_path / "key", key="key")

    before = json.loads(json.dumps(secrets))
    assert run(*given) == []

    assert run(*given, "--node=edge-kiosk.1") == ["demo-nodes"]
    kept = before["demo-nodes"]["data"].items()
    assert kept < secrets["demo-nodes"]["data"].items()
    assert {"edge-kiosk.1.key", "edge-kiosk.1.pub"} <= secrets["demo-nodes"]["data"].keys()


def test_other_names_of_the_server_are_another_certificate_of_the_same_authority(cluster):
    secrets, run = cluster
    run("--host=one")
    before = json.loads(json.dumps(secrets))
    assert run("--host=one", "--host=two") == ["demo-tls"]
    assert secrets["demo-tls"]["data"]["tls.crt"] != before["demo-tls"]["data"]["tls.crt"]
    assert secrets["demo-tls"]["data"]["ca.crt"] == before["demo-authority"]["data"]["ca.crt"]


def test_what_was_lost_is_made_again(cluster):
    secrets, run = cluster
    run("--host=one", "--node=cpu-0")
    authority, key = data(secrets, "authority", "ca.crt"), data(secrets, "nodes", "cpu-0.key")
    del secrets["demo-operator"]
    assert run("--host=one", "--node=cpu-0") == ["demo-operator"]
    assert len(data(secrets, "operator", "operator.token")) == 64
    assert data(secrets, "authority", "ca.crt") == authority
    # an attempt that was cut off before it wrote its authority is begun anew; nodes keep their keys
    del secrets["demo-authority"]
    assert set(run("--host=one", "--node=cpu-0")) == {"demo-tls", "demo-operator", "demo-authority"}
    assert data(secrets, "tls", "ca.crt") == data(secrets, "authority", "ca.crt") != authority
    assert data(secrets, "nodes", "cpu-0.key") == key
