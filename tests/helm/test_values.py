"""Values that do not fit are refused, with words that say what to do."""

from __future__ import annotations

import pytest

pytest.importorskip("gotpl")

import re

import jsonschema
from gotpl.errors import TemplateExecutionError

from tests.helm.chart import check, defaults, merged, of_set, render

pytestmark = pytest.mark.slow


def test_the_defaults_are_within_their_own_schema():
    check(defaults())


def keys(tree, path=()):
    """Every map of the defaults, by path; open maps (labels, resources) excepted."""
    open_maps = {
        "labels", "annotations", "podLabels", "nodeSelector", "nodes", "runs", "spec", "requests",
        "limits", "volume", "tolerations", "env",
    }  # fmt: skip
    yield path
    for key, value in tree.items():
        if isinstance(value, dict) and key not in open_maps:
            yield from keys(value, (*path, key))


@pytest.mark.parametrize("path", list(keys(defaults())), ids=".".join)
def test_a_misspelt_key_is_refused_everywhere(path):
    over = {"misspelt": 1}
    for key in reversed(path):
        over = {key: over}
    with pytest.raises(jsonschema.ValidationError, match="misspelt"):
        check(merged(defaults(), over))


@pytest.mark.parametrize(
    "over",
    [
        {"superlink": {"service": {"port": 0}}},
        {"superlink": {"address": "no-port"}},
        {"superlink": {"terminationGracePeriodSeconds": 10}},
        {"supernode": {"clients": -1}},
        {"supernode": {"edge": {"nodes": {"Not_a_node": 1}}}},
        {"supernode": {"edge": {"memoryLimit": "much"}}},
        {"supernode": {"cpu": {"replicas": 0}}},
        {"persistence": {"accessMode": "ReadOnlyMany"}},
        {"persistence": {"size": "20 gigs"}},
        {"database": {"url": "mysql://db/x"}},
        {"global": {"securityContext": {"runAsUser": 0}}},
        {"global": {"nodeAuth": {"authListPublicKeys": ["ssh-rsa AAAA"]}}},
        {"runs": {"x": {"restarts": 1}}},
        {"tls": {"certificate": {"existingIssuerKind": "Vault"}}},
    ],
    ids=str,
)
def test_a_value_out_of_range_is_refused(over):
    with pytest.raises(jsonschema.ValidationError):
        check(merged(defaults(), over))


POOL = {"enabled": True}
PLAIN = {"tls": {"enabled": False}, "global": {"nodeAuth": {"enabled": False}}}
ELSEWHERE = {"superlink": {"enabled": False}, "ui": {"enabled": False}}
RUN = {"x": {"file": "a"}}


@pytest.mark.parametrize(
    ("over", "words"),
    [
        ({"tls": {"enabled": False}}, "global.nodeAuth.enabled"),
        ({**ELSEWHERE, "supernode": {"clients": 1, "cpu": POOL}},
         "tls.existingSecret and global.nodeAuth.existingSecret"),
        ({"persistence": {"enabled": False}}, "ui.enabled"),
        ({**PLAIN, "runs": RUN}, "runs.x: needs tls.enabled"),
        ({"runs": {"x": {"file": "a", "simulate": True}}}, "simulation.rayCluster.enabled"),
        ({"simulation": {"rayCluster": {"enabled": True}}}, "ReadWriteMany"),
        ({"ui": {"enabled": False}, "metrics": {"serviceMonitor": POOL}}, "needs ui.enabled"),
        ({"supernode": {"clients": 1, "cpu": {**POOL, "replicas": 2}}}, "cpu-1 is client 1"),
        ({"supernode": {"clients": 9, "cpu": POOL, "gpu": POOL}},
         "client number 0 is both cpu-0 and gpu-0"),
        ({"supernode": {"clients": 9, "cpu": POOL, "edge": {"enabled": True, "nodes": {"a": 0}}}},
         "client number 0 is both cpu-0 and edge-a"),
        ({"supernode": {"clients": 9, "edge": POOL}}, "supernode.edge.nodes"),
        ({"supernode": {"clients": 9, "edge": {"enabled": True, "nodes": {"a": 0}}}},
         "supernode.edge.work.volume"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)  # fmt: skip
def test_values_that_do_not_fit_each_other_are_named(over, words):
    with pytest.raises(TemplateExecutionError, match=re.escape(words)):
        render(over)


def test_a_pool_that_starts_at_a_number_takes_the_next_ones():
    volumes = of_set("gpu").of("Deployment", "-superlink")["spec"]["template"]["spec"]["volumes"]
    (certs,) = [v["projected"] for v in volumes if v["name"] == "certs"]
    shown = [i["path"] for s in certs["sources"] for i in s["secret"]["items"]]
    assert [p for p in shown if p.startswith("nodes/")] == [
        f"nodes/{name}.pub" for name in ("cpu-0", "cpu-1", "gpu-0", "gpu-1")
    ]
