"""The documents of the dashboard, from the run database; each costs by steps and clients."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

from orchestrator.digest import Digest
from orchestrator.home import Home
from orchestrator.results import Overview, ShownClient, SummedRound
from orchestrator.store import SqlRunStore, open_store
from orchestrator.store.browsing import EventWindow
from orchestrator.store.drift import DriftTable
from orchestrator.summary import overview, shown_clients, summed_rounds

ADAPTER_EVENTS: Final = ("published", "withheld")
_ALL: Final = 1_000_000


@dataclass(frozen=True, kw_only=True)
class RunDocuments:
    """Everything but replies and most events of one run.

    All is of one instant but ``drift``, which may have a step more.
    """

    digest: Digest
    drift: DriftTable
    overview: Overview

    @cached_property
    def rounds(self) -> list[SummedRound]:
        """Its steps, without their drift by group, which is a table of its own."""
        return summed_rounds(self.digest.steps)

    @cached_property
    def clients(self) -> list[ShownClient]:
        """Its clients."""
        return shown_clients(self.digest)


@dataclass(frozen=True, slots=True)
class Reader:
    """Reads runs of one data directory."""

    home: Home

    @property
    def store(self) -> SqlRunStore:
        """The run database; one per URL and process."""
        return open_store(self.home.database_url)

    def run_id(self, text: str) -> str:
        """The whole id that ``text`` names: itself, the start of one, or ``latest``.

        Raises: RunNotFoundError naming the nearest ids.
        """
        return self.store.get_run(text).run_id

    def run(self, run_id: str) -> RunDocuments:
        """A run by its whole id.

        Raises: RunNotFoundError.
        """
        digest, drift = Digest.by_sums(self.store.sums(run_id)), self.store.drift(run_id)
        window = EventWindow(limit=_ALL, kinds=ADAPTER_EVENTS)
        events = [each.event for each in self.store.event_window(run_id, window)]
        path = self.report_path(run_id)
        shown = overview(digest, drift, events, report_path=str(path) if path.exists() else None)
        return RunDocuments(digest=digest, drift=drift, overview=shown)

    def report_path(self, run_id: str) -> Path:
        """Where the run's report is, if it has been written."""
        return self.home.run_folder(run_id) / "report.html"
