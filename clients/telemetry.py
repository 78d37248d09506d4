"""What a trainer tells Prometheus; imports no torch.

Names start with ``perennial_trainer_``; no label says whose examples or which run they are.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from clients.answering import Progress
from clients.jobs import BenchStatus, Job
from strategies.errors import ConfigError, Fault
from strategies.types import FailureReason
from strategies.wire import kind_of, text_of

PREFIX: Final = "perennial_trainer_"
_STEP_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_REASONS: Final = frozenset(FailureReason)
ABANDONED: Final = "abandoned"
OTHER: Final = "error"


class TrainerMetrics:
    """Watches a bench; a ``clients.jobs.Observer``.  Everything is there from the start, at 0."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._step_seconds = Histogram(
            f"{PREFIX}step_seconds", "Local training steps, from a drawn batch to new parameters.",
            buckets=_STEP_SECONDS, registry=self.registry,
        )  # fmt: skip
        self._examples = self._counter("examples", "Examples that steps were taken on.")
        self._tokens = self._counter("tokens", "Tokens of those examples, of text models.")
        self._answers = self._counter("answers", "Messages answered, failures included.")
        self._training = Gauge(
            f"{PREFIX}trainings_under_way", "Local trainings at work now: 0 or 1.",
            registry=self.registry,
        )  # fmt: skip
        self._failures = Counter(
            f"{PREFIX}failures", "Messages without a usable answer, by reason.",
            ["reason"], registry=self.registry,
        )  # fmt: skip
        self._bytes = Counter(
            f"{PREFIX}bytes", "Messages worked on and answers given; up is from the client.",
            ["direction"], registry=self.registry,
        )  # fmt: skip
        start = Gauge(
            f"{PREFIX}start_timestamp_seconds", "When this process began.", registry=self.registry
        )
        start.set(time.time())
        for direction in ("up", "down"):
            self._bytes.labels(direction)
        for reason in (FailureReason.CRASHED.value, FailureReason.BUSY.value, ABANDONED, OTHER):
            self._failures.labels(reason)

    def watch(
        self, status: Callable[[], BenchStatus], device_memory_bytes: Callable[[], int]
    ) -> None:
        """Ask these at every scrape."""
        self.registry.register(_Asked(status, device_memory_bytes))

    def heard(self, progress: Progress) -> None:
        self._training.set(progress.phase == "train")
        if progress.seconds is not None:
            self._step_seconds.observe(progress.seconds)
            self._examples.inc(progress.examples)
            self._tokens.inc(progress.tokens)

    def ended(self, job: Job, answer: bytes | None, error: str | None) -> None:
        self._training.set(0)
        self._bytes.labels("down").inc(len(job.message))
        self._bytes.labels("up").inc(len(answer or b""))
        self._answers.inc(answer is not None)
        if answer is None:
            self._failures.labels(ABANDONED if error == ABANDONED else OTHER).inc()
        elif kind_of(answer) == "failure":
            reason = text_of(answer, "reason")
            self._failures.labels(reason if reason in _REASONS else OTHER).inc()

    def refused(self) -> None:
        self._failures.labels(FailureReason.BUSY.value).inc()

    def _counter(self, name: str, meaning: str) -> Counter:
        return Counter(PREFIX + name, meaning, registry=self.registry)


class _Asked(Collector):
    """What the bench and the device know themselves."""

    def __init__(
        self, status: Callable[[], BenchStatus], device_memory_bytes: Callable[[], int]
    ) -> None:
        self._status, self._device_memory_bytes = status, device_memory_bytes

    def collect(self) -> Iterator[Metric]:
        loads = "Base models loaded since the process began."
        memory = "Memory this process holds on the training device; without a GPU, in RAM."
        yield CounterMetricFamily(f"{PREFIX}model_loads", loads, value=self._status().model_loads)
        yield GaugeMetricFamily(
            f"{PREFIX}device_memory_bytes", memory, value=self._device_memory_bytes()
        )


def expose(metrics: TrainerMetrics, host: str, port: int) -> str:
    """Serve the metrics in a thread of this process; their address.

    Raises: ConfigError if nobody can listen there.
    """
    try:
        server, _ = start_http_server(port, addr=host, registry=metrics.registry)
    except (OSError, OverflowError) as error:
        fault = Fault("--metrics-port", f"{host}:{port}", "one that can be listened on", str(error))
        raise ConfigError("trainer", [fault]) from None
    return f"http://{f'[{host}]' if ':' in host else host}:{server.server_port}/metrics"
