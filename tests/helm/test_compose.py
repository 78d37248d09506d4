"""deploy/compose.yaml: whatever it names exists, and what it starts parses."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from tests.helm.commands import parse
from tests.helm.images import HEALTH

ROOT = Path(__file__).parents[2]
OURS = re.compile(r"perennial/(server|client-cpu|client-gpu):")
# In the images of others, by their documentation.
THEIR_PROGRAMS = {"db": "pg_isready", "prometheus": "wget", "grafana": "wget"}


def compose():
    return yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())


SERVICES = compose()["services"]


def filled(text):
    """With the defaults of its variables."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


def mounts(service):
    return [filled(v).split(":") for v in service.get("volumes", ())]


@pytest.mark.parametrize("name", SERVICES)
def test_what_a_service_names_is_there(name):
    whole, service = compose(), SERVICES[name]
    for other, condition in dict.fromkeys(service.get("depends_on", ()), None).items():
        assert other in SERVICES
        if isinstance(service["depends_on"], dict):
            condition = service["depends_on"][other]["condition"]
        if condition == "service_healthy":
            assert SERVICES[other]["healthcheck"].get("disable") is not True
        if condition == "service_completed_successfully":
            assert SERVICES[other]["restart"] == "no"
    assert set(service.get("networks", ())) <= whole["networks"].keys()
    for config in service.get("configs", ()):
        yaml.safe_load(whole["configs"][config["source"]]["content"])
    for source, *_ in mounts(service):
        if source.startswith("."):
            assert (ROOT / "deploy" / source).exists(), source
        else:
            assert source in whole["volumes"]


@pytest.mark.parametrize("name", [n for n, s in SERVICES.items() if OURS.match(s["image"])])
def test_our_services_are_confined_and_their_commands_parse(name):
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    command = service["command"]
    if service.get("entrypoint") == ["sh", "-c"]:
        command = command[0].split("exec perennial ")[1].split()
    parse(command)
    places = [target for _, target, *_ in mounts(service)]
    for path in re.findall(r"(?<![\w.:])/[a-z][\w./-]*", " ".join(command)):
        assert any(path == p or path.startswith(f"{p}/") for p in places), path


@pytest.mark.parametrize("name", [n for n in SERVICES if n.startswith("client-")])
def test_clients_are_those_that_certificates_are_made_for(name):
    number = int(name.removeprefix("client-"))
    _, options = parse(SERVICES[name]["command"])
    _, made = parse(SERVICES["certs"]["command"][0].split("exec perennial ")[1].split())
    assert (options["number"], options["clients"]) == (number, made["nodes"])
    assert str(options["auth_key"]) == f"/certs/nodes/client-{number}.key"
    assert options["superlink"].split(":")[0] in made["host"]


@pytest.mark.parametrize("name", SERVICES)
def test_health_checks_are_commands_of_the_image(name):
    check = SERVICES[name].get("healthcheck", {})
    if check.get("disable"):
        return
    assert check["test"][0] == "CMD"
    if OURS.match(SERVICES[name]["image"]):
        assert check["test"][1:4] == HEALTH
    else:
        assert check["test"][1] == THEIR_PROGRAMS[name]


def test_nothing_is_published_beyond_this_machine():
    for service in SERVICES.values():
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:")


def test_prometheus_scrapes_what_is_served():
    whole = compose()
    jobs = yaml.safe_load(whole["configs"]["prometheus"]["content"])["scrape_configs"]
    assert [job["job_name"] for job in jobs] == ["perennial", "perennial-trainer"]
    for target in (t for job in jobs for t in job["static_configs"][0]["targets"]):
        host, port = target.split(":")
        assert re.search(rf"\b{port}\b", " ".join(SERVICES[host]["command"]))
        assert set(SERVICES[host]["networks"]) & set(SERVICES["prometheus"]["networks"])
    ui = SERVICES["ui"]["command"]  # refuses names it was not told
    assert ui[ui.index("--allow-host") + 1] == "ui"


def test_images_are_pinned():
    for service in SERVICES.values():
        tag = filled(service["image"]).rpartition(":")[2]
        assert re.match(r"v?\d+\.\d+", tag), service["image"]
    assert json.dumps(compose())  # nothing in it that is more than JSON
