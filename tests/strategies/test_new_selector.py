"""A new layer selector in twenty lines and one catalog line, and a whole run with it."""

from __future__ import annotations

from dataclasses import dataclass

from strategies.catalog import LAYER_SELECTORS
from strategies.rng import Rng
from strategies.types import HEAD, RoundView, Selection
from tests.conftest import tiny_config


@dataclass(frozen=True, slots=True)
class TopBlocks:
    """Every client trains the last ``count`` blocks and the head."""

    count: int = 1

    def select(self, view: RoundView, rng: Rng) -> Selection:
        last = max(g.block for g in view.groups if g.block is not None)
        chosen = tuple(
            g.name
            for g in view.groups
            if g.kind == "head"
            or (g.kind == "linear" and g.block is not None and g.block > last - self.count)
        )
        return {client.client_id: chosen for client in view.clients}


def test_a_new_selector_needs_one_catalog_line(home, run_here, monkeypatch):
    monkeypatch.setitem(LAYER_SELECTORS, "top-blocks", TopBlocks)
    run_id = run_here(tiny_config(strategy__layer_selection={"name": "top-blocks", "count": 1}))
    for record in home.store().rounds(run_id):
        for reply in record.replies if record.kind == "train" else ():
            assert HEAD in reply.ranks
            assert all(".1." in name for name in reply.ranks if name != HEAD)
