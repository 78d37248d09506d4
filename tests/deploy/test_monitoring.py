"""What lies in deploy/ for Prometheus and Grafana: valid, tested, and of metrics that exist."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from clients.jobs import BenchStatus
from clients.telemetry import TrainerMetrics
from orchestrator.telemetry import catalog
from tests.conftest import REPOSITORY

PROMETHEUS, GRAFANA = REPOSITORY / "deploy" / "prometheus", REPOSITORY / "deploy" / "grafana"
DOCS = (REPOSITORY / "docs" / "monitoring.md").read_text(encoding="utf-8")
RULES = yaml.safe_load((PROMETHEUS / "rules.yaml").read_text(encoding="utf-8"))
DASHBOARD = json.loads((GRAFANA / "dashboard.json").read_text(encoding="utf-8"))
needs_promtool = pytest.mark.skipif(
    not shutil.which("promtool"), reason="promtool is not installed"
)
NAMES = re.compile(r"\bperennial_[a-z_]+")


def trainer_families() -> list[Any]:
    from prometheus_client import generate_latest

    metrics = TrainerMetrics()
    status = BenchStatus(model_loads=0, runs_served=0, answers=0, busy=False, idle_seconds=0.0)
    metrics.watch(lambda: status, lambda: 0)
    return list(text_string_to_metric_families(generate_latest(metrics.registry).decode()))


def exported() -> set[str]:
    """Every series name of the product, with those a histogram has."""
    stems = {(each.series, each.kind) for each in catalog.ALL}
    for family in trainer_families():
        total = "_total" if family.type == "counter" else ""
        stems.add((family.name + total, family.type))
    names = {name for name, kind in stems if kind != "histogram"}
    parts = ("_bucket", "_count", "_sum")
    return names | {name + part for name, kind in stems if kind == "histogram" for part in parts}


def alerts() -> list[dict[str, Any]]:
    return [rule for group in RULES["groups"] for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def expressions() -> Iterator[tuple[str, str]]:
    for rule in alerts():
        yield rule["alert"], rule["expr"]
    for panel in panels():
        for target in panel["targets"]:
            yield panel["title"], target["expr"]


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = ["promtool", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=PROMETHEUS)


@needs_promtool
@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "rules", "rules.yaml"),
        ("check", "config", "prometheus.yaml"),
        ("test", "rules", "rules_test.yaml"),
    ],
    ids=" ".join,
)
def test_promtool_agrees(arguments):
    done = promtool(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_every_expression_parses(tmp_path):
    variables = {"$__rate_interval": "5m", "$run": ".*"}
    rules = []
    for number, (_, expression) in enumerate(expressions()):
        for name, value in variables.items():
            expression = expression.replace(name, value)
        rules.append({"record": f"expression_{number}", "expr": expression})
    assert len(rules) > 40
    path = tmp_path / "expressions.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "all", "rules": rules}]}))
    done = promtool("check", "rules", path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_expressions_name_only_what_is_exported():
    known = exported()
    for where, expression in expressions():
        names = set(NAMES.findall(expression))
        assert names <= known, (where, names - known)
    for variable in DASHBOARD["templating"]["list"]:
        assert set(NAMES.findall(variable.get("definition", ""))) <= known


def test_expressions_name_only_labels_that_metrics_have():
    labels = {each.series: set(each.labels) for each in catalog.ALL}
    for where, expression in expressions():
        for name, inside in re.findall(r"\b(perennial_[a-z_]+)\{([^}]*)\}", expression):
            stem = re.sub("_(bucket|count|sum)$", "", name)
            asked = set(re.findall(r"(\w+)\s*(?:=~|!=|!~|=)", inside))
            assert asked <= labels.get(stem, labels.get(name, set())), (where, name, asked)


def test_every_alert_is_tested_and_says_what_to_do():
    tested = (PROMETHEUS / "rules_test.yaml").read_text(encoding="utf-8")
    names = [rule["alert"] for rule in alerts()]
    assert len(names) == len(set(names))
    for rule in alerts():
        name, notes = rule["alert"], rule["annotations"]
        assert f'ALERTS{{alertname="{name}", alertstate="firing", ' in tested, name
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert {"summary", "description", "runbook", "runbook_url"} == notes.keys()
        assert notes["runbook_url"] == f"docs/monitoring.md#{name.lower()}"
        assert f"\n### {name}\n" in DOCS


def test_every_metric_is_documented():
    for each in catalog.ALL:
        labels = ", ".join(f"`{label}`" for label in each.labels) or "–"
        assert f"| `{each.series}` | {each.kind} | {labels} | {each.help} |" in DOCS
    for family in trainer_families():
        name = family.name + ("_total" if family.type == "counter" else "")
        kinds = {name for sample in family.samples for name in sample.labels} - {"le"}
        labels = ", ".join(f"`{label}`" for label in sorted(kinds)) or "–"
        assert f"| `{name}` | {family.type} | {labels} | {family.documentation} |" in DOCS
    assert set(re.findall(r"^\| `(perennial_\w+)`", DOCS, re.MULTILINE)) == {
        re.sub("_bucket$", "", name) for name in exported() if not re.search("_(count|sum)$", name)
    }


def test_the_dashboard_has_what_grafana_asks_for():
    assert {"title", "uid", "schemaVersion", "panels", "templating", "time"} <= DASHBOARD.keys()
    assert DASHBOARD["schemaVersion"] >= 36
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    for panel in panels():
        assert panel["type"] in ("timeseries", "stat", "gauge")
        assert panel["title"]
        assert panel["description"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        for target in panel["targets"]:
            assert target["legendFormat"]
        refs = [target["refId"] for target in panel["targets"]]
        assert len(set(refs)) == len(refs)


def test_panels_lie_beside_each_other():
    cells = set[tuple[int, int]]()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        own = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not own & cells, panel["title"]
        cells |= own
