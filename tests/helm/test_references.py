"""Whatever one object of the chart names is there: volumes, secrets, ports, accounts, labels."""

from __future__ import annotations

import re

import pytest

pytest.importorskip("gotpl")

from orchestrator.deployment.certificates import CertificateFolder
from tests.helm.chart import SETS, containers, of_set, pods, render, values_of

pytestmark = pytest.mark.slow

NAMES = sorted(path.stem for path in SETS.iterdir())
every_set = pytest.mark.parametrize("name", NAMES)
ELSEWHERE = {"examples"}  # claims that a value set says somebody else makes


def secrets_of(values, found=None):
    """Names in the value set that stand for secrets made by somebody else."""
    found = set() if found is None else found
    for key, value in values.items():
        if isinstance(value, dict):
            secrets_of(value, found)
        elif key == "existingSecret" and value:
            found.add(value)
    return found


def secrets(rendered, values):
    """Every secret there is: rendered, made by cert-manager or the Job, or somebody else's.

    Their keys, or None where they are not ours to know.
    """
    known = {
        x["metadata"]["name"]: set(x["stringData"])
        for x in rendered.objects
        if x["kind"] == "Secret"
    }
    known |= dict.fromkeys(secrets_of(values))
    for thing in rendered.objects:
        if thing["kind"] == "Certificate":
            known[thing["spec"]["secretName"]] = {"ca.crt", "tls.crt", "tls.key"}
        if thing["kind"] == "Job" and thing["metadata"]["name"].endswith("-certs"):
            (job,) = thing["spec"]["template"]["spec"]["containers"]
            nodes = [a.removeprefix("--node=") for a in job["args"] if a.startswith("--node=")]
            prefix = next(
                a.removeprefix("--prefix=") for a in job["args"] if a.startswith("--prefix=")
            )
            known.setdefault(f"{prefix}-tls", {"ca.crt", "tls.crt", "tls.key"})
            known[f"{prefix}-operator"] = {"operator.token"}
            known[f"{prefix}-nodes"] = {f"{n}{end}" for n in nodes for end in (".key", ".pub")}
    return known


def named(volume):
    """(kind, name, items) of what a volume shows."""
    if "projected" in volume:
        for source in volume["projected"]["sources"]:
            ((kind, content),) = source.items()
            yield kind, content["name"], content["items"]
    if "secret" in volume:
        yield "secret", volume["secret"]["secretName"], volume["secret"].get("items", ())
    if "configMap" in volume:
        yield "configMap", volume["configMap"]["name"], volume["configMap"].get("items", ())


@every_set
def test_volumes_show_what_exists(name):
    values = values_of(name)
    rendered = of_set(name)
    maps = {
        x["metadata"]["name"]: set(x["data"]) for x in rendered.objects if x["kind"] == "ConfigMap"
    }
    known = {"secret": secrets(rendered, values), "configMap": maps}
    for owner, pod in pods(rendered):
        for volume in pod["spec"]["volumes"]:
            claim = volume.get("persistentVolumeClaim", {}).get("claimName")
            assert claim is None or claim in rendered.names("PersistentVolumeClaim") | ELSEWHERE
            for kind, called, items in named(volume):
                assert called in known[kind], f"{owner}: {kind} {called}"
                keys = known[kind][called]
                assert keys is None or {i["key"] for i in items} <= keys, f"{owner}: {called}"


@every_set
def test_every_mount_has_its_volume_and_every_volume_its_mount(name):
    rendered = of_set(name)
    claims = {
        x["metadata"]["name"]: [c["metadata"]["name"] for c in x["spec"]["volumeClaimTemplates"]]
        for x in rendered.objects
        if x["kind"] == "StatefulSet"
    }
    for owner, pod in pods(rendered):
        there = {v["name"] for v in pod["spec"]["volumes"]} | set(claims.get(owner.split()[1], ()))
        mounted = {m["name"] for c in containers(pod) for m in c["volumeMounts"]}
        assert mounted == there, owner
        for container in containers(pod):
            known = {x["name"] for x in container["env"]}
            for mount in container["volumeMounts"]:
                used = set(re.findall(r"\$\((\w+)\)", mount.get("subPathExpr", "")))
                assert used <= known, f"{owner}: {mount}"


@every_set
def test_every_path_on_a_command_line_is_mounted(name):
    for owner, pod in pods(of_set(name)):
        for container in containers(pod):
            mounts = [m["mountPath"] for m in container["volumeMounts"]]
            line = " ".join([*container.get("command", ()), *container.get("args", ())])
            for path in re.findall(r"(?<![\w.$])/[a-z][\w./-]*", line):
                if path != "/dev/null":
                    assert any(path == m or path.startswith(f"{m}/") for m in mounts), (owner, path)


@every_set
def test_secrets_in_the_environment_exist(name):
    values = values_of(name)
    rendered = of_set(name)
    known = secrets(rendered, values)
    for owner, pod in pods(rendered):
        for container in containers(pod):
            for variable in container["env"]:
                if reference := variable.get("valueFrom", {}).get("secretKeyRef"):
                    assert reference["name"] in known, owner
                    keys = known[reference["name"]]
                    assert keys is None or reference["key"] in keys


@every_set
def test_accounts_services_and_ports_exist(name):
    rendered = of_set(name)
    for _, pod in pods(rendered):
        account = pod["spec"].get("serviceAccountName")
        assert account is None or account in rendered.names("ServiceAccount")
        for container in containers(pod):
            ports = {p["name"] for p in container.get("ports", ())}
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                port = container.get(probe, {}).get("httpGet", {}).get("port")
                assert port is None or port in ports
    for thing in rendered.objects:
        if thing["kind"] == "StatefulSet":
            assert thing["spec"]["serviceName"] in rendered.names("Service")
        if thing["kind"] == "RoleBinding":
            assert thing["roleRef"]["name"] in rendered.names("Role")
            assert {s["name"] for s in thing["subjects"]} <= rendered.names("ServiceAccount")


def selected(selector, labels):
    if not selector.get("matchLabels", {}).items() <= labels.items():
        return False
    return all(labels.get(e["key"]) in e["values"] for e in selector.get("matchExpressions", ()))


@every_set
def test_every_selector_selects_something(name):
    rendered = of_set(name)
    found = [pod["metadata"]["labels"] for _, pod in pods(rendered)]
    ports = {
        p["name"]: pod["metadata"]["labels"]
        for _, pod in pods(rendered)
        for c in containers(pod)
        for p in c.get("ports", ())
    }
    services = [x for x in rendered.objects if x["kind"] == "Service"]
    for thing in rendered.objects:
        spec, called = thing.get("spec", {}), f"{thing['kind']} {thing['metadata']['name']}"
        if thing["kind"] in ("Deployment", "StatefulSet", "DaemonSet"):
            assert selected(spec["selector"], spec["template"]["metadata"]["labels"]), called
            count = sum(selected(spec["selector"], labels) for labels in found)
            assert count == 1, f"{called} selects {count}"
        if thing["kind"] == "Service":
            for port in spec.get("ports", ()):
                assert spec["selector"].items() <= ports[port["targetPort"]].items(), called
        if thing["kind"] in ("PodDisruptionBudget", "PodMonitor"):
            assert any(selected(spec["selector"], labels) for labels in found), called
        if thing["kind"] == "NetworkPolicy":
            assert any(selected(spec["podSelector"], labels) for labels in found), called
        if thing["kind"] == "ServiceMonitor":
            (service,) = [
                s for s in services if selected(spec["selector"], s["metadata"]["labels"])
            ]
            assert spec["endpoints"][0]["port"] in {p["name"] for p in service["spec"]["ports"]}


@pytest.mark.parametrize("name", ["tls", "gpu", "postgres", "airgapped"])
def test_the_server_finds_the_layout_of_a_certificate_folder(name):
    spec = of_set(name).of("Deployment", "-superlink")["spec"]["template"]["spec"]
    (certs,) = [v for v in spec["volumes"] if v["name"] == "certs"]
    shown = {i["path"] for _, _, items in named(certs) for i in items}
    folder = CertificateFolder(SETS)
    needed = {folder.authority, folder.server, folder.server_key, folder.token}
    assert {str(p.relative_to(SETS)) for p in needed} <= shown
    assert "ca.key" not in shown
    for path in shown - {str(p.relative_to(SETS)) for p in needed}:
        assert re.fullmatch(r"nodes/[\w.-]+\.pub", path), f"{path} is no public key"


def reaches(rendered, source, target, port):
    """Whether policies let a pod with labels ``source`` talk to ``target``; None is the world."""
    policies = [x["spec"] for x in rendered.objects if x["kind"] == "NetworkPolicy"]

    def allowed(side, here, there):
        rules = [
            rule for p in policies if selected(p["podSelector"], here) for rule in p.get(side, ())
        ]
        peers = "from" if side == "ingress" else "to"
        for rule in rules:
            fits = "ports" not in rule or port in [x["port"] for x in rule["ports"]]
            who = rule.get(peers)
            known = who is None or (
                there is not None
                and any("podSelector" in w and selected(w["podSelector"], there) for w in who)
            )
            if fits and known:
                return True
        return False

    out = source is None or allowed("egress", source, target)
    return out and (target is None or allowed("ingress", target, source))


def test_policies_let_through_what_is_needed_and_nothing_else():
    rendered = of_set("tls")
    labels = {
        pod["metadata"]["labels"]["app.kubernetes.io/component"]: pod["metadata"]["labels"]
        for _, pod in pods(rendered)
    }
    assert labels.keys() == {"superlink", "ui", "cpu", "run", "certs"}
    talks = {
        (a, b)
        for a in labels
        for b in labels
        for port in (8000, 8080)
        if reaches(rendered, labels[a], labels[b], port)
    }
    # uiFrom of this set opens the dashboard to the namespace, but our own pods may not go there
    assert talks == {("cpu", "superlink"), ("run", "superlink")}
    assert not reaches(rendered, labels["cpu"], None, 443)
    assert not reaches(rendered, labels["superlink"], None, 443)
    assert reaches(rendered, labels["certs"], None, 443)
    assert all(reaches(rendered, each, None, 53) for each in labels.values())


def test_only_who_opens_the_database_may_reach_it():
    rendered = render(
        {"database": {"existingSecret": "x"}, "supernode": {"clients": 1, "cpu": {"enabled": True}}}
    )
    can = {
        pod["metadata"]["labels"]["app.kubernetes.io/component"]
        for _, pod in pods(rendered)
        if reaches(rendered, pod["metadata"]["labels"], None, 5432)
    }
    assert can == {"superlink", "ui", "migrate"}
