"""The runs that are killed: small, and with everything on that a client or the server remembers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from orchestrator.config import RunConfig
from tests.conftest import tiny_config

_REMEMBERING: Final = {
    "learning__local_steps": 2,
    "learning__methods": [{"name": "er"}, {"name": "derpp"}],
    "replay__rounds": {"name": "fpf", "steps": 2},
    "replay__steering": {"full_at_nats": 0.5},
    "strategy__compression": [{"name": "topk", "density": 0.25}, {"name": "int8"}],
    "strategy__downlink": "bf16",
    "publish__require": {"max_drop": 0.05},
}
_ASYNCHRONOUS: Final = {
    "model__head": "random-features",
    "model__random_features": 60,
    "strategy__head": {"name": "analytic"},
    "strategy__aggregation": {"name": "ffa"},
    "learning__local_steps": 2,
    "federation__buffer": {"size": 1, "max_staleness": 1},
    "links": {
        "name": "constant",
        "flops_per_second": 1e9,
        "uplink_bytes_per_second": (1e5, 1.3e5),
        "downlink_bytes_per_second": (1e5, 1.3e5),
    },
}
RECIPES: Final[Mapping[str, Mapping[str, Any]]] = {
    # Memories, logits of earlier models, residuals, replay rounds, a gate.
    "golden": _REMEMBERING,
    # The same over Flower's transport, replies in the wrong order: letters and the spool.
    "letters": _REMEMBERING,
    # Updates under way across steps, and a head solved from sums.
    "buffered": _ASYNCHRONOUS,
    # The first one, simulated by Flower and Ray in processes of its own.
    "ray": _REMEMBERING | {"federation__transport": "ray"},
}


def recipe(name: str, seed: int = 0) -> RunConfig:
    """The run of a recipe."""
    return tiny_config(name=name, seed=seed, **RECIPES[name])
