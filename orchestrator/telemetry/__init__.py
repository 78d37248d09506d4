"""The run database as Prometheus metrics: one target that outlives every run."""

from __future__ import annotations

from typing import Final
from weakref import WeakKeyDictionary

from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, CollectorRegistry, generate_latest

from orchestrator.store.base import RunStore
from orchestrator.telemetry.collector import RunCollector

__all__ = ["CONTENT_TYPE", "RunCollector", "render"]

CONTENT_TYPE: Final = CONTENT_TYPE_PLAIN_0_0_4
_remembered: Final[WeakKeyDictionary[RunStore, CollectorRegistry]] = WeakKeyDictionary()


def render(store: RunStore) -> bytes:
    """All metrics of a run database in Prometheus's text format, of ``CONTENT_TYPE``.

    Call it with the same store again: what was read of it once is remembered.  May be called from
    several threads.  A database that is away is told as ``perennial_database_up 0``, not raised.
    """
    registry = _remembered.get(store)
    if registry is None:
        registry = CollectorRegistry()
        registry.register(RunCollector(store.tallies))
        _remembered[store] = registry
    return generate_latest(registry)
