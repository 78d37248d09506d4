"""Make the certificates and keys of a release with `perennial certs`, and keep them as Secrets.

Runs in a hook of the chart, on the standard library. What is there already is kept: another node
gets a key, other names of the server get another certificate, and nothing else changes.

    PREFIX-authority   ca.crt ca.key             mounted by nobody
    PREFIX-tls         ca.crt tls.crt tls.key    the server's; clients and runs mount ca.crt alone
    PREFIX-operator    operator.token            the server's, and whoever submits runs
    PREFIX-nodes       NAME.key NAME.pub         a client mounts its key, the server the .pub files
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import secrets
import ssl
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

POD = Path("/var/run/secrets/kubernetes.io/serviceaccount")
HOSTS = "perennial.io/hosts"
# Secret -> key in it -> file of the certificate folder
FIXED = {
    "tls": {"ca.crt": "ca.crt", "tls.crt": "server.crt", "tls.key": "server.key"},
    "operator": {"operator.token": "operator.token"},
    "authority": {"ca.crt": "ca.crt", "ca.key": "ca.key"},
}
# The authority is written last: where it is, the others have been.
ORDER = ("nodes", *FIXED)


class Api:
    """The Secrets of this pod's namespace."""

    def __init__(self, url: str, pod: Path) -> None:
        namespace = (pod / "namespace").read_text().strip()
        self.url = f"{url}/api/v1/namespaces/{namespace}/secrets"
        self.token = (pod / "token").read_text().strip()
        authority = pod / "ca.crt"
        self.trusted = ssl.create_default_context(cafile=authority) if authority.exists() else None

    def get(self, name: str) -> dict | None:
        """A secret; None if there is none."""
        try:
            return self._ask("GET", f"{self.url}/{name}")
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            raise

    def put(self, secret: dict, *, new: bool) -> None:
        """Create or replace one."""
        name = secret["metadata"]["name"]
        self._ask("POST" if new else "PUT", self.url if new else f"{self.url}/{name}", secret)

    def _ask(self, method: str, url: str, body: dict | None = None) -> dict:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        request = urllib.request.Request(url, data=data, headers=headers, method=method)  # noqa: S310 - the API server
        with urllib.request.urlopen(request, timeout=30, context=self.trusted) as answer:  # noqa: S310
            return json.load(answer)


def files_of(secret: str, found: dict | None) -> dict[str, str]:
    """Key in the secret, and the file of the folder that it holds."""
    if secret in FIXED:
        return FIXED[secret]
    return {key: f"nodes/{key}" for key in (found or {}).get("data", {})}


def unpack(found: dict[str, dict | None], folder: Path) -> None:
    """Make a certificate folder of what is kept."""
    (folder / "nodes").mkdir(mode=0o700, parents=True)
    for secret, content in found.items():
        if secret in FIXED and found["authority"] is None:
            continue  # left by an attempt that was cut off
        for key, path in files_of(secret, content).items():
            if content and key in content.get("data", {}):
                (folder / path).write_bytes(base64.b64decode(content["data"][key]))


def make(folder: Path, hosts: list[str], nodes: list[str], *, renamed: bool) -> None:
    """Have `perennial certs` make what is missing."""
    server = [folder / "server.crt", folder / "server.key"]
    if renamed:
        for path in server:
            path.unlink(missing_ok=True)
    token = folder / "operator.token"
    if (folder / "ca.key").exists() and not token.exists():
        token.write_text(secrets.token_hex(32))
    command = ["perennial", "certs", "--to", str(folder)]
    if not all(path.exists() for path in server):
        command += [word for host in hosts for word in ("--host", host)]
    missing = [node for node in nodes if not (folder / "nodes" / f"{node}.key").exists()]
    command += [word for node in missing for word in ("--node", node)]
    if len(command) > 4:
        subprocess.run(command, check=True)  # noqa: S603


def pack(name: str, part: str, folder: Path, hosts: str, found: dict | None) -> dict:
    """The secret as it should be, from the folder."""
    files = FIXED.get(part) or {p.name: f"nodes/{p.name}" for p in (folder / "nodes").iterdir()}
    data = {key: base64.b64encode((folder / p).read_bytes()).decode() for key, p in files.items()}
    metadata = (found or {}).get("metadata") or {"name": name}
    if part == "tls":
        metadata["annotations"] = {**(metadata.get("annotations") or {}), HOSTS: hosts}
    kind = "kubernetes.io/tls" if part == "tls" else "Opaque"
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "type": kind, "data": data}


def main() -> None:
    """Make what is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prefix", required=True)
    parser.add_argument("--host", action="append", default=[])
    parser.add_argument("--node", action="append", default=[])
    parser.add_argument("--api", default=os.environ.get("KUBERNETES_SERVICE_HOST", ""))
    parser.add_argument("--pod", type=Path, default=POD)
    given = parser.parse_args()
    host, port = given.api, os.environ.get("KUBERNETES_SERVICE_PORT_HTTPS", "443")
    bracketed = f"[{host}]" if ":" in host else host
    api = Api(host if "://" in host else f"https://{bracketed}:{port}", given.pod)

    found = {secret: api.get(f"{given.prefix}-{secret}") for secret in ORDER}
    hosts = " ".join(given.host)
    known = ((found["tls"] or {}).get("metadata", {}).get("annotations") or {}).get(HOSTS)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "certs"
        unpack(found, folder)
        make(folder, given.host, given.node, renamed=known not in (None, hosts))
        for secret, before in found.items():
            name = f"{given.prefix}-{secret}"
            after = pack(name, secret, folder, hosts, before)
            if before is None or before.get("data", {}) != after["data"]:
                api.put(after, new=before is None)
                sys.stdout.write(f"{'made' if before is None else 'updated'} secret {name}\n")


if __name__ == "__main__":
    main()
