"""Helm itself, where it is installed, renders what gotpl does, on which all other tests rest.

Not among the packages for tests, because it takes 240 MB: pip install helm-python-sdk
"""

from __future__ import annotations

import pytest
import yaml

pytest.importorskip("gotpl")
pytest.importorskip("helm_python", reason="helm-python-sdk is not installed")

import helm_python as helm

from tests.helm.chart import CHART, SETS, of_set, values_of

pytestmark = pytest.mark.slow

NAMES = sorted(path.stem for path in SETS.iterdir())


def keyed(objects):
    return {(x["kind"], x["metadata"]["name"]): x for x in objects}


@pytest.mark.parametrize("name", NAMES)
def test_helm_renders_the_same_objects_and_notes(name):
    with helm.Chart.load(CHART) as chart:
        chart.validate_schema(values_of(name))
        texts = chart.render(values_of(name), name="demo", namespace="lab")
    (notes,) = [texts.pop(path) for path in list(texts) if path.endswith("NOTES.txt")]
    objects = [x for text in texts.values() for x in yaml.safe_load_all(text) if x]
    assert keyed(objects) == keyed(of_set(name).objects)
    assert len(objects) == len(of_set(name).objects)
    assert notes.strip() == of_set(name).notes.strip()


@pytest.mark.parametrize("name", NAMES)
def test_helm_lint_has_no_warning(name):
    report = helm.lint(CHART, values_of(name), strict=True)
    assert report["errors"] == []
    assert [m for m in report["messages"] if m["severity"] > 1] == []


def test_helm_refuses_a_key_that_is_none():
    with helm.Chart.load(CHART) as chart, pytest.raises(helm.HelmError, match="misspelt"):
        chart.validate_schema({"superlink": {"misspelt": 1}})
