"""What pods and images start parses with the product's command line; probes ask real parts."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helm.commands import parse
from tests.helm.images import HEALTH, stages

pytest.importorskip("gotpl")

from tests.helm.chart import CHART, SETS, containers, of_set, pods, render, values_of

pytestmark = pytest.mark.slow

NAMES = sorted(path.stem for path in SETS.iterdir())
ROOT = CHART.parents[1]


def in_a_shell(script, tmp_path, environment):
    """The arguments with which a pod's script starts `perennial`, by running it for real."""
    for name in ("perennial", "ray"):
        fake = tmp_path / name
        fake.write_text(
            f"#!{sys.executable}\nimport json, sys\n"
            f"if {name == 'perennial'}: print(json.dumps(sys.argv[1:]))\n"
        )
        fake.chmod(0o755)
    given = {"PATH": f"{tmp_path}:/usr/bin:/bin", **environment}
    ran = subprocess.run(
        ["sh", "-c", script.replace("/numbers/", f"{tmp_path}/numbers/")],
        env=given, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return ran, json.loads(ran.stdout) if ran.returncode == 0 else None


@pytest.mark.parametrize("name", NAMES)
def test_every_command_of_the_chart_parses(name, tmp_path):
    (tmp_path / "numbers").mkdir()
    (tmp_path / "numbers" / "kiosk-1").write_text("20")
    environment = {"ORDINAL": "1", "NODE_NAME": "kiosk-1", "RAY_ADDRESS": "head:6379"}
    seen = set()
    for owner, pod in pods(of_set(name)):
        for container in containers(pod):
            command = container.get("command")
            if command == ["sh", "-c"]:
                _, arguments = in_a_shell(container["args"][0], tmp_path, environment)
                assert arguments, owner
                seen.add(parse(arguments)[0])
            elif command is None and "args" in container:
                seen.add(parse(container["args"])[0])
    assert seen


def test_the_dashboard_takes_the_options_it_is_given():
    (container,) = of_set("tls").of("Deployment", "-ui")["spec"]["template"]["spec"]["containers"]
    assert parse(container["args"])[0] == "ui"


def test_the_server_listens_where_the_service_sends(tmp_path):
    rendered = of_set("tls")
    (container,) = rendered.of("Deployment", "-superlink")["spec"]["template"]["spec"]["containers"]
    _, options = parse(container["args"])
    assert options["port"] == container["ports"][0]["containerPort"]
    assert options["certs"] == "/certs"
    assert not options["insecure"]
    (plain,) = of_set("minimal").of("Deployment", "-superlink")["spec"]["template"]["spec"][
        "containers"
    ]
    assert parse(plain["args"])[1]["insecure"]
    assert plain["readinessProbe"]["httpGet"]["scheme"] == "HTTP"
    assert container["readinessProbe"]["httpGet"] == {
        "path": "/health", "port": "superlink", "scheme": "HTTPS",
    }  # fmt: skip


@pytest.mark.parametrize(("pool", "ordinal", "number"), [("gpu", "1", 1), ("cpu", "1", 3)])
def test_a_pod_of_a_stateful_set_is_the_client_of_its_ordinal(pool, ordinal, number, tmp_path):
    spec = of_set("gpu").of("StatefulSet", f"-{pool}")["spec"]["template"]["spec"]
    (client,) = spec["containers"]
    _, arguments = in_a_shell(client["args"][0], tmp_path, {"ORDINAL": ordinal})
    _, options = parse(arguments)
    assert (options["number"], options["clients"]) == (number, 4)
    assert options["superlink"] == "demo-perennial-superlink.lab.svc:8000"
    (key,) = [m["subPathExpr"] for m in client["volumeMounts"] if m["name"] == "keys"]
    assert key == f"{pool}-$(ORDINAL).key"
    (trainer,) = spec["initContainers"]
    assert f"--address={options['trainer']}" in trainer["args"]


def test_a_pod_of_the_daemon_set_is_the_client_of_its_node(tmp_path):
    (client,) = of_set("edge").of("DaemonSet")["spec"]["template"]["spec"]["containers"]
    (tmp_path / "numbers").mkdir()
    (tmp_path / "numbers" / "shop.floor-3").write_text("22")
    _, arguments = in_a_shell(client["args"][0], tmp_path, {"NODE_NAME": "shop.floor-3"})
    _, options = parse(arguments)
    assert (options["number"], options["clients"], str(options["kind"])) == (22, 40, "edge")
    assert options["memory_limit"] == "1GB"
    ran, _ = in_a_shell(client["args"][0], tmp_path, {"NODE_NAME": "stranger"})
    assert ran.returncode == 2
    assert "stranger has no client number: add it to supernode.edge.nodes" in ran.stderr


def test_a_run_is_made_once_and_resumed_by_itself():
    spec = of_set("tls").of("Job", "-digits-" + digest())["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    name, options = parse(container["args"])
    assert name == "run"
    assert options["once"]
    assert options["restarts"] == 5
    assert options["on"] == "demo-perennial-superlink.lab.svc:8000"
    assert [r["action"] for r in spec["podFailurePolicy"]["rules"]] == ["Ignore", "FailJob"]


def digest():
    (job,) = [n for n in of_set("tls").names("Job") if "-run-" in n]
    return job.rsplit("-", 1)[1]


def test_another_file_is_another_job():
    values = values_of("tls")
    before = render(values).names("Job")
    values["runs"]["digits"]["file"] += "seed = 1\n"
    assert len(before - render(values).names("Job")) == 1


def test_a_trainer_of_a_pod_takes_its_arguments():
    from clients.trainer_service import _arguments

    (trainer,) = of_set("gpu").of("StatefulSet", "-gpu")["spec"]["template"]["spec"][
        "initContainers"
    ]
    assert trainer["command"] == ["python", "-m", "clients.trainer_service"]
    assert _arguments(trainer["args"]).metrics_port == trainer["ports"][0]["containerPort"]


def test_settings_of_a_trainer_are_settings():
    from clients.settings import read_settings

    text = of_set("gpu").of("ConfigMap", "-gpu")["data"]["trainer.json"]
    path = Path(__file__).parent / "trainer.json"
    try:
        path.write_text(text)
        assert read_settings(path).kind == "gpu"
    finally:
        path.unlink()


@pytest.mark.parametrize("name", NAMES)
def test_probes_that_are_commands_ask_by_the_health_module(name):
    for owner, pod in pods(of_set(name)):
        for container in containers(pod):
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                command = container.get(probe, {}).get("exec", {}).get("command")
                if command is None or command[0] == "ray":
                    continue
                assert command[:3] == HEALTH, owner
                socket = command[3].removeprefix("unix:")
                mounts = [m["mountPath"] for m in container["volumeMounts"]]
                assert any(socket.startswith(f"{m}/") for m in mounts), owner


def test_images_start_what_parses():
    for name in ("server", "client-cpu", "client-gpu"):
        stage = stages()[name]
        assert json.loads(stage["ENTRYPOINT"]) == ["perennial"]
        arguments = json.loads(stage["CMD"])
        if "--help" not in arguments:
            parse(arguments)
        assert re.search(
            r'CMD \["python", "-m", "orchestrator.deployment.health"', stage["HEALTHCHECK"]
        )
