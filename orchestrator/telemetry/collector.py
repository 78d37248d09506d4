"""Reads the run database when Prometheus asks, and remembers what cannot change any more."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from orchestrator.store.base import ENDED, RunRecord, RunStatus
from orchestrator.store.tallies import Mark, Overview, Tallies
from orchestrator.telemetry import catalog
from orchestrator.telemetry.catalog import PREFIX, Spec
from orchestrator.telemetry.samples import Sample, quality_of, rank_buckets, state_of
from orchestrator.telemetry.tally import RunTally
from strategies.errors import StoreError

log = logging.getLogger(__name__)

RECENT_RUNS: Final = 20
_PATIENCE_SECONDS: Final = 0.1  # for runs that are new to the collector
_FAMILIES: Final = {"gauge": GaugeMetricFamily, "counter": CounterMetricFamily}


@dataclass(frozen=True, slots=True)
class _Known:
    """A run as far as it was read."""

    tally: RunTally
    at: tuple[RunStatus, Mark | None]
    state: list[Sample]
    quality: list[Sample]


@dataclass(slots=True, eq=False)
class RunCollector(Collector):
    """Metrics of the runs in a database.

    Counters follow from the database alone, so they go on where they were after any process was
    restarted and after a run was resumed.  Only the steps of a run that were forgotten because
    their checkpoints were damaged take their counts with them.
    A run appears once it was read whole, in a thread of its own if that takes longer than a moment.
    """

    tallies: Callable[[], Tallies]
    clock: Callable[[], float] = time.monotonic  # s
    _known: dict[str, _Known] = field(default_factory=dict)
    _reader: threading.Thread | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def describe(self) -> Iterable[Metric]:
        """What registering asks for: the names, without reading anything."""
        return [_family(spec, []) for spec in catalog.ALL if spec.kind != "histogram"]

    def collect(self) -> Iterator[Metric]:
        """All families; where the database does not answer, only that it does not."""
        began = self.clock()
        try:
            with self._lock:
                families, pending = self._read()
        except StoreError as error:
            log.warning("no metrics: %s", error)
            yield _family(catalog.DATABASE_UP, [((), 0)])
            return
        yield _family(catalog.DATABASE_UP, [((), 1)])
        yield _family(catalog.SCRAPE_PENDING, [((), pending)])
        yield from families
        yield _family(catalog.SCRAPE_SECONDS, [((), self.clock() - began)])

    def _read(self) -> tuple[list[Metric], int]:
        tallies = self.tallies()
        overview = tallies.overview(RECENT_RUNS)
        watched = _by_urgency(overview)
        for gone in self._known.keys() - {run.run_id for run in watched}:
            del self._known[gone]
        for run in watched:
            if known := self._known.get(run.run_id):
                self._read_on(tallies, run, overview, known.tally)
        if new := [run for run in watched if run.run_id not in self._known]:
            self._meet(tallies, new, overview)
        return self._families(overview), sum(run.run_id not in self._known for run in watched)

    def _meet(self, tallies: Tallies, runs: Sequence[RunRecord], overview: Overview) -> None:
        """Have runs that are new read from their start, and wait a moment for that."""
        if not (self._reader and self._reader.is_alive()):
            work = partial(self._read_all, tallies, runs, overview)
            self._reader = threading.Thread(target=work, name="metrics", daemon=True)
            self._reader.start()
        self._reader.join(_PATIENCE_SECONDS)

    def _read_all(self, tallies: Tallies, runs: Sequence[RunRecord], overview: Overview) -> None:
        try:
            for run in runs:
                self._read_on(tallies, run, overview, RunTally())
        except StoreError as error:
            log.warning("runs that are new have no metrics yet: %s", error)

    def _read_on(
        self, tallies: Tallies, run: RunRecord, overview: Overview, tally: RunTally
    ) -> None:
        """Read what is new of the run; nothing of one that had ended and still has."""
        known, at = self._known.get(run.run_id), (run.status, overview.marks.get(run.run_id))
        if known and known.at == at and run.status in ENDED:
            return
        tally = tally.plus(tallies.increment(run.run_id, tally.mark, tally.event_id))
        same = known and known.tally.mark == tally.mark
        quality = known.quality if known and same else list(quality_of(run, tally))
        self._known[run.run_id] = _Known(tally, at, list(state_of(run, tally)), quality)

    def _families(self, overview: Overview) -> list[Metric]:
        values: dict[Spec, list[tuple[tuple[str, ...], float]]] = {
            spec: [] for spec in catalog.ALL if "run" in spec.labels
        }
        ranks = HistogramMetricFamily(PREFIX + catalog.RANK.name, catalog.RANK.help, labels=["run"])
        for run_id, known in sorted(self._known.copy().items()):
            for spec, labels, value in (*known.state, *known.quality):
                values[spec].append(((run_id, *labels), value))
            ranks.add_metric([run_id], *rank_buckets(known.tally.ranks))
        del values[catalog.RANK]
        counts = [((status.value,), overview.statuses.get(status, 0)) for status in RunStatus]
        plain = [_family(spec, samples) for spec, samples in values.items()]
        return [_family(catalog.RUNS, counts), *plain, ranks]


def _by_urgency(overview: Overview) -> list[RunRecord]:
    """Those under way first, then the newest."""
    return sorted(overview.runs, key=lambda run: (run.status in ENDED, -run.created_at.timestamp()))


def _family(spec: Spec, samples: Iterable[tuple[tuple[str, ...], float]]) -> Metric:
    family: Metric = _FAMILIES[spec.kind](PREFIX + spec.name, spec.help, labels=spec.labels)
    for labels, value in samples:
        family.add_metric(labels, value)  # type: ignore[attr-defined]  # both have it
    return family
