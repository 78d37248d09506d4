"""Every object of every value set is valid, restricted, and calls nobody."""

from __future__ import annotations

import json

import jsonschema
import pytest

pytest.importorskip("gotpl")

from tests.helm.chart import (
    CHART,
    KUBERNETES,
    SETS,
    containers,
    of_set,
    pods,
    render,
)
from tests.helm.crds import SPECS

pytestmark = pytest.mark.slow

kubernetes_validate = pytest.importorskip("kubernetes_validate")
NAMES = sorted(path.stem for path in SETS.iterdir())
every_set = pytest.mark.parametrize("name", NAMES)


def valid(thing):
    """By Kubernetes' own schema, or for custom resources by ours.

    Raises: a validation error.
    """
    custom = SPECS.get((thing["apiVersion"], thing["kind"]))
    if custom is None:
        kubernetes_validate.validate(thing, KUBERNETES, strict=True)
    else:
        jsonschema.validate(thing["spec"], custom)


def test_there_are_sets_for_what_people_deploy():
    assert {"minimal", "tls", "edge", "gpu", "postgres", "airgapped"} <= set(NAMES)


@every_set
def test_every_object_is_valid_and_named_once(name):
    rendered = of_set(name)
    for thing in rendered.objects:
        valid(thing)
        labels = thing["metadata"]["labels"]
        assert labels["app.kubernetes.io/instance"] == "demo"
        assert len(thing["metadata"]["name"]) <= 63
    names = [(x["kind"], x["metadata"]["name"]) for x in rendered.objects]
    assert len(names) == len(set(names))
    for _, pod in pods(rendered):  # also those inside custom resources
        valid({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": pod["spec"]})


@every_set
def test_every_pod_is_restricted(name):
    """Kubernetes' restricted profile, and a read-only root besides."""
    for _, pod in pods(of_set(name)):
        shared = pod["spec"]["securityContext"]
        assert shared["runAsNonRoot"] is True
        assert shared["runAsUser"] > 0
        assert shared["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod["spec"].keys()
        for container in containers(pod):
            own = container["securityContext"]
            assert own["allowPrivilegeEscalation"] is False
            assert own["readOnlyRootFilesystem"] is True
            assert own["capabilities"] == {"drop": ["ALL"]}
            assert {"requests"} <= container["resources"].keys()
            writable = {m["mountPath"] for m in container["volumeMounts"] if not m.get("readOnly")}
            assert "/tmp" in writable  # noqa: S108 - a path in a container


@every_set
def test_no_pod_calls_anybody_and_only_the_certificate_job_has_a_token(name):
    for owner, pod in pods(of_set(name)):
        mounted = pod["spec"]["automountServiceAccountToken"]
        assert mounted is (owner == "Job demo-perennial-certs"), owner
        for container in containers(pod):
            environment = {x["name"]: x.get("value") for x in container["env"]}
            assert environment["FLWR_TELEMETRY_ENABLED"] == "0"
            assert environment["RAY_USAGE_STATS_ENABLED"] == "0"
            assert environment["HF_HUB_OFFLINE"] == "1"
            assert environment["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] == "1"


def test_a_registry_of_ones_own_is_used_for_every_image():
    rendered = of_set("airgapped")
    images = {c["image"] for _, pod in pods(rendered) for c in containers(pod)}
    assert images == {
        "registry.internal/mirror/perennial/server:0.1.0-7",
        "registry.internal/mirror/perennial/client-cpu:0.1.0-7",
    }
    for _, pod in pods(rendered):
        assert pod["spec"]["imagePullSecrets"] == [{"name": "mirror"}]
        assert pod["spec"]["securityContext"]["runAsUser"] == 20000


def test_the_version_of_the_images_is_that_of_the_package():
    images = {c["image"] for _, pod in pods(of_set("gpu")) for c in containers(pod)}
    version = next(
        line.split('"')[1]
        for line in (CHART.parents[1] / "pyproject.toml").read_text().splitlines()
        if line.startswith("version = ")
    )
    assert images == {f"perennial/{x}:{version}" for x in ("server", "client-cpu", "client-gpu")}


def test_a_trainer_has_the_gpus_and_ends_after_its_client():
    pod = of_set("gpu").of("StatefulSet", "-gpu")["spec"]["template"]["spec"]
    (trainer,) = pod["initContainers"]
    assert trainer["restartPolicy"] == "Always"  # so Kubernetes ends it after the client
    assert trainer["resources"]["limits"] == {"memory": "32Gi", "nvidia.com/gpu": 1}
    assert "limits" not in pod["containers"][0]["resources"]
    assert pod["terminationGracePeriodSeconds"] > 120


def test_rules_and_dashboard_are_those_of_deploy():
    """The chart links to them; a copy could grow old."""
    values = {"metrics": {"prometheusRule": {"enabled": True}, "dashboard": {"enabled": True}}}
    for link, source in (
        ("files/rules.yaml", "deploy/prometheus/rules.yaml"),
        ("files/dashboard.json", "deploy/grafana/dashboard.json"),
    ):
        assert (CHART / link).resolve() == (CHART.parents[1] / source).resolve()
    rendered = render(values)
    valid(rendered.of("PrometheusRule"))
    assert rendered.of("PrometheusRule")["spec"]["groups"]
    board = rendered.of("ConfigMap", "-dashboard")
    assert json.loads(board["data"]["perennial.json"]) == json.loads(
        (CHART / "files/dashboard.json").read_text()
    )
    assert board["metadata"]["labels"]["grafana_dashboard"] == "1"


@every_set
def test_the_notes_name_what_is_there(name):
    rendered = of_set(name)
    assert "<no value>" not in rendered.notes
    assert ("port-forward" in rendered.notes) is ("demo-perennial-ui" in rendered.names("Service"))


def test_parts_of_ray_are_asked_by_grpc_where_they_listen():
    """Without probes of ours KubeRay adds its own, which need wget and Ray's dashboard."""
    spec = of_set("postgres").of("RayCluster")["spec"]
    (workers,) = spec["workerGroupSpecs"]
    assert "port" not in spec["headGroupSpec"]["rayStartParams"]  # so it is Ray's default, 6379
    for template, port in (
        (spec["headGroupSpec"]["template"], 6379),
        (workers["template"], int(workers["rayStartParams"]["node-manager-port"])),
    ):
        (container,) = template["spec"]["containers"]
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert container[probe]["grpc"] == {"port": port}
