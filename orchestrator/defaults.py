"""What is done against forgetting where a run file does not say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

# The same choices, with their reasons, are in examples/remember.toml; a test compares the two.
_SOLVED: Final[Mapping[str, Mapping[str, Any]]] = {
    "model": {"head": "random-features"},
    "learning": {"adapted_tasks": 0},
    "strategy": {"head": {"name": "analytic"}},
}
_REPLAYED: Final[Mapping[str, Mapping[str, Any]]] = {
    "learning": {"methods": [{"name": "er"}]},
    "replay": {"policy": {"name": "forgetting"}},
}
_DECISIVE: Final = ("learning", "replay", "strategy")


def with_defaults(tree: Mapping[str, Any]) -> dict[str, Any]:
    """``tree`` with a strategy, if it has no ``learning``, ``replay`` or ``strategy`` of its own.

    A classifier on pooled features gets an analytic head, which forgets nothing; whatever else, a
    causal LM or a checkpoint's own head, replays what it has forgotten most.  A run file that
    chooses a head decides for itself.
    """
    model = tree.get("model", {})
    if any(name in tree for name in _DECISIVE) or not isinstance(model, Mapping):
        return dict(tree)
    if "head" in model:
        return dict(tree)
    pooled = model.get("pooling", "model") != "model" and model.get("task") != "causal-lm"
    chosen = _SOLVED if pooled else _REPLAYED
    return {**tree, **{name: {**tree.get(name, {}), **table} for name, table in chosen.items()}}
