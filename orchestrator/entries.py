"""The catalog of strategies as data, for whoever shows it."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

from strategies.catalog import KINDS, parameters_of


def catalog_entries() -> list[dict[str, Any]]:
    """Every strategy: kind, name, parameters with defaults, what it does, and its source."""
    return [
        _entry(kind, name, target)
        for kind, table in KINDS.items()
        for name, target in table.items()
    ]


def _entry(kind: str, name: str, target: type | str) -> dict[str, Any]:
    strategy = _resolve(target) if isinstance(target, str) else target
    text = inspect.getdoc(strategy) or ""
    source = text.partition("Source:")[2].replace("\n", " ").strip()
    return {
        "kind": kind,
        "name": name,
        "parameters": parameters_of(strategy),
        "summary": text.partition("\n\n")[0].replace("\n", " "),
        "source": source,
    }


def _resolve(address: str) -> type:
    module, _, name = address.partition(":")
    found: type = getattr(importlib.import_module(module), name)
    return found
