"""An answer beyond 2 GiB, from a ClientApp over SuperNode and SuperLink to a ServerApp."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import psutil
import pytest

from orchestrator.deployment import control
from orchestrator.deployment.control import Connection, Control
from orchestrator.deployment.flower import Address
from tests.chaos.deployed_victims import Name, Strike, process_of
from tests.e2e import big_app
from tests.e2e.federation import Loopback, eventually

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

BEYOND = 2**31 + 2**27  # bytes: more than an int32 counts
COPIES = 8  # of the answer, in all processes together
PROCESSES: tuple[Name, ...] = ("clientapp", "supernode", "superlink", "serverapp")


def carried(folder: Path, num_bytes: int, patch: pytest.MonkeyPatch) -> dict[str, object]:
    """What the ServerApp got, and the peak of every process's memory in bytes."""
    components = "orchestrator.server_app:app", "clients.client_app:app"
    ours = control._APP.replace(components[0], "tests.e2e.big_app:server")
    patch.setattr(control, "_APP", ours.replace(components[1], "tests.e2e.big_app:client"))
    federation, told, peaks = Loopback(folder), folder / "told.json", dict.fromkeys(PROCESSES, 0)

    def arrived() -> bool:
        for name in PROCESSES:
            if process := process_of(federation, Strike(name, "training", 0, 0)):
                peaks[name] = max(peaks[name], _resident(process))
        return told.exists() and told.read_text() != ""

    try:
        federation.make_certificates(1)
        federation.server()
        federation.client(0, 1).wait_for("connected to .* trainer warm", 600)
        operator = Control.open(
            Connection(
                address=Address(host=federation.host, port=federation.port),
                root_certificates=federation.certs / "ca.crt",
                insecure=False,
                token=None,
            )
        )
        operator.submit({"config": json.dumps({"bytes": num_bytes, "to": str(told)})})
        assert eventually(arrived, big_app.LIMIT_SECONDS), federation.log.read_text()[-3000:]
        operator.close()
        return json.loads(told.read_text()) | {"peaks": peaks}
    finally:
        federation.end()


def _resident(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0


def test_an_answer_beyond_two_gibibytes_arrives_whole(tmp_path, monkeypatch):
    if psutil.virtual_memory().available < COPIES * BEYOND:
        pytest.skip(f"needs {COPIES * BEYOND / 1e9:.0f} GB of free memory")
    found = carried(tmp_path, BEYOND, monkeypatch)
    assert found["bytes"] == BEYOND
    assert found["digest"] == hashlib.sha256(big_app.counted(BEYOND)).hexdigest()
