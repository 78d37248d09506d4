"""Small schemas of the custom resources that the chart makes: what it uses, and nothing else."""

from __future__ import annotations

from typing import Any

STRING = {"type": "string", "minLength": 1}
LABELS = {"type": "object", "additionalProperties": {"type": "string"}}
INTEGER = {"type": "integer", "minimum": 0}


def shape(required: str, **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "additionalProperties": False,
        "properties": properties,
        "required": required.split(),
    }


def several(of: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": of, "minItems": 1}


SELECTOR = shape("matchLabels", matchLabels=LABELS, matchExpressions=several({"type": "object"}))
RELABELING = shape("targetLabel replacement", targetLabel=STRING, replacement=STRING)
ENDPOINTS = several(
    shape("port path", port=STRING, path=STRING, interval=STRING, relabelings=several(RELABELING))
)
POD = {"type": "object", "required": ["spec"]}  # its inside is held against Kubernetes' own schema
RULE = shape(
    "expr", alert=STRING, record=STRING, expr=STRING, labels=LABELS, annotations=LABELS,
    **{"for": STRING, "keep_firing_for": STRING},
)  # fmt: skip
SPECS = {
    ("cert-manager.io/v1", "Issuer"): {"type": "object", "minProperties": 1, "maxProperties": 1},
    ("cert-manager.io/v1", "Certificate"): shape(
        "secretName issuerRef dnsNames",
        secretName=STRING,
        duration=STRING,
        renewBefore=STRING,
        privateKey=shape("algorithm size", algorithm={"enum": ["ECDSA"]}, size={"enum": [256]}),
        usages=several({"enum": ["digital signature", "server auth"]}),
        issuerRef=shape("name kind group", name=STRING, kind=STRING, group=STRING),
        dnsNames=several(STRING),
        ipAddresses=several(STRING),
    ),
    ("monitoring.coreos.com/v1", "ServiceMonitor"): shape(
        "selector endpoints", selector=SELECTOR, endpoints=ENDPOINTS
    ),
    ("monitoring.coreos.com/v1", "PodMonitor"): shape(
        "selector podMetricsEndpoints", selector=SELECTOR, podMetricsEndpoints=ENDPOINTS
    ),
    ("monitoring.coreos.com/v1", "PrometheusRule"): shape(
        "groups",
        groups=several(shape("name rules", name=STRING, interval=STRING, rules=several(RULE))),
    ),
    ("ray.io/v1", "RayCluster"): shape(
        "headGroupSpec workerGroupSpecs",
        rayVersion=STRING,
        headGroupSpec=shape("rayStartParams template", rayStartParams=LABELS, template=POD),
        workerGroupSpecs=several(
            shape(
                "groupName replicas minReplicas maxReplicas rayStartParams template",
                groupName=STRING,
                replicas=INTEGER,
                minReplicas=INTEGER,
                maxReplicas=INTEGER,
                rayStartParams=LABELS,
                template=POD,
            )
        ),
    ),
}
