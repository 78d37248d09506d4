"""The chart, rendered as Helm does it, by gotpl: values merged, schema applied, templates executed.

What Helm can do and this does not: subcharts, `lookup` in a cluster (it finds nothing here), and
ordering by kind.  The chart uses none of them.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import yaml
from gotpl.exts.helm import HelmTemplateEngine

CHART = Path(__file__).parents[2] / "helm" / "perennial"
SETS = Path(__file__).parent / "values"
KUBERNETES = "1.31"


class Files:
    """`.Files` of a chart."""

    def Get(self, name: str) -> str:  # noqa: N802 - Helm's name
        path = CHART / name
        return path.read_text() if path.is_file() else ""


@dataclass(frozen=True)
class Rendered:
    """All objects of a release, and its notes."""

    objects: tuple[dict[str, Any], ...]
    notes: str

    def of(self, kind: str, name: str = "") -> dict[str, Any]:
        """The only object of a kind, or the one whose name ends so."""
        found = [
            x for x in self.objects if x["kind"] == kind and x["metadata"]["name"].endswith(name)
        ]
        assert len(found) == 1, f"{len(found)} of {kind} …{name}"
        return found[0]

    def names(self, kind: str) -> set[str]:
        return {x["metadata"]["name"] for x in self.objects if x["kind"] == kind}


def merged(base: Any, over: Any) -> Any:
    """Helm's way: maps by key, null removes, everything else replaces."""
    if not isinstance(base, Mapping) or not isinstance(over, Mapping):
        return copy.deepcopy(over)
    result = {key: copy.deepcopy(value) for key, value in base.items()}
    for key, value in over.items():
        if value is None and key in result:
            del result[key]
        else:
            result[key] = merged(result.get(key), value)
    return result


def defaults() -> dict[str, Any]:
    return yaml.safe_load((CHART / "values.yaml").read_text())


def values_of(name: str) -> dict[str, Any]:
    return yaml.safe_load((SETS / f"{name}.yaml").read_text()) or {}


def check(values: Mapping[str, Any]) -> None:
    """Raises: jsonschema.ValidationError."""
    schema = json.loads((CHART / "values.schema.json").read_text())
    jsonschema.Draft7Validator(schema).validate(values)


@cache
def _engine() -> HelmTemplateEngine:
    templates = sorted((CHART / "templates").iterdir())
    return HelmTemplateEngine({path.name: path.read_text() for path in templates})


def render(over: Mapping[str, Any], release: str = "demo", namespace: str = "lab") -> Rendered:
    """Raises: jsonschema.ValidationError, gotpl's error where a template refuses the values."""
    values = merged(defaults(), over)
    check(values)
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    context = {
        "Values": values,
        "Chart": {
            "Name": chart["name"],
            "Version": chart["version"],
            "AppVersion": chart["appVersion"],
        },
        "Release": {
            "Name": release,
            "Namespace": namespace,
            "Service": "Helm",
            "Revision": 1,
            "IsInstall": True,
            "IsUpgrade": False,
        },
        "Capabilities": {"KubeVersion": {"Version": f"v{KUBERNETES}.0"}},
        "Files": Files(),
        "Template": {"BasePath": "perennial/templates"},
    }
    names = [p.name for p in (CHART / "templates").iterdir() if not p.name.startswith("_")]
    texts = _engine().render({name: copy.deepcopy(context) for name in sorted(names)})
    notes = texts.pop("NOTES.txt")
    objects = [
        item for name in sorted(texts) for item in yaml.load_all(texts[name], Loader=Strict) if item
    ]
    return Rendered(tuple(objects), notes)


@cache
def of_set(name: str) -> Rendered:
    """A value set, rendered once; nobody changes what comes out."""
    return render(values_of(name))


class Strict(yaml.SafeLoader):
    """Refuses a key that stands twice, which PyYAML would let the last one win."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:  # noqa: FBT001, FBT002 - PyYAML's own
        keys = [self.construct_object(key, deep=deep) for key, _ in node.value]
        twice = {key for key in keys if keys.count(key) > 1}
        assert not twice, f"{twice} twice {node.start_mark}"
        return super().construct_mapping(node, deep=deep)


def pods(rendered: Rendered) -> list[tuple[str, dict[str, Any]]]:
    """Every pod template, with what it belongs to."""
    found = []
    for x in rendered.objects:
        name = f"{x['kind']} {x['metadata']['name']}"
        if x["kind"] in ("Deployment", "StatefulSet", "DaemonSet", "Job"):
            found.append((name, x["spec"]["template"]))
        if x["kind"] == "RayCluster":
            found.append((f"{name} head", x["spec"]["headGroupSpec"]["template"]))
            found += [(f"{name} worker", w["template"]) for w in x["spec"]["workerGroupSpecs"]]
    return found


def containers(pod: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [*pod["spec"].get("initContainers", ()), *pod["spec"]["containers"]]
