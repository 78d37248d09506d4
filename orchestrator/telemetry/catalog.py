"""Every metric of the run database: name, type, labels and meaning.  Nothing else is exported.

Names start with ``perennial_`` and end in their base unit, counters in ``_total``.  A label's
values are few: runs that are under way and the newest ones, tasks by index, and words of ours; no
client, group or text of a user's but the run's name, once per run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

PREFIX: Final = "perennial_"
RANK_BUCKETS: Final = (0, 1, 2, 4, 8, 16, 32, 64, 128)  # 0 is dense


@dataclass(frozen=True, slots=True)
class Spec:
    """A metric; ``name`` lacks the prefix and, of a counter, ``_total``."""

    name: str
    kind: Literal["gauge", "counter", "histogram"]
    labels: tuple[str, ...]
    help: str

    @property
    def series(self) -> str:
        """The name it is asked by; of a histogram, its stem."""
        return PREFIX + self.name + ("_total" if self.kind == "counter" else "")


DATABASE_UP: Final = Spec(
    "database_up", "gauge", (), "1 if the run database answered this scrape, else 0."
)
SCRAPE_SECONDS: Final = Spec(
    "scrape_duration_seconds", "gauge", (), "How long reading the run database took."
)
SCRAPE_PENDING: Final = Spec(
    "scrape_pending_runs", "gauge", (), "Watched runs not read yet; later scrapes have them."
)
RUNS: Final = Spec("runs", "gauge", ("status",), "Runs in the database.")
RUN_INFO: Final = Spec("run_info", "gauge", ("run", "name"), "Always 1; what the run is called.")
RUN_STATUS: Final = Spec(
    "run_status", "gauge", ("run", "status"), "1 for the status the run is in, 0 for the others."
)
RUN_START: Final = Spec(
    "run_start_timestamp_seconds", "gauge", ("run",), "When the run was first started."
)
LEASE_EXPIRY: Final = Spec(
    "run_lease_expiry_timestamp_seconds", "gauge", ("run",),
    "When the lease of a run under way ends unless its orchestrator renews it.",
)  # fmt: skip
LAST_COMMIT: Final = Spec(
    "run_last_commit_timestamp_seconds", "gauge", ("run",),
    "When the run last committed a step; its start before the first one.",
)  # fmt: skip
PLANNED_STEPS: Final = Spec(
    "run_planned_steps", "gauge", ("run",), "Steps the run has from its start to its end."
)
ROUNDS: Final = Spec(
    "rounds", "counter", ("run", "kind"), "Committed steps: train, evaluate, probe, head, replay."
)
PHASE_SECONDS: Final = Spec(
    "round_phase_seconds", "counter", ("run", "phase"),
    "The server's time in committed steps: exchange, aggregate, checkpoint and others.",
)  # fmt: skip
CLIENTS: Final = Spec(
    "clients", "gauge", ("run", "state"),
    "Clients of a run under way: answered or waiting in the step at hand, quarantined.",
)  # fmt: skip
BYTES: Final = Spec(
    "bytes", "counter", ("run", "direction"),
    "Serialised messages of committed steps; up is from clients to the server.",
)  # fmt: skip
REPLIES: Final = Spec(
    "replies", "counter", ("run", "status"), "Orders of committed steps, by ok or failed."
)
FAILURES: Final = Spec(
    "failures", "counter", ("run", "reason"), "Orders that gave nothing usable, by reason."
)
DEADLINE_MISSES: Final = Spec(
    "deadline_misses", "counter", ("run",), "Orders without an answer in time."
)
EVENTS: Final = Spec("events", "counter", ("run", "kind"), "Entries of the run's history.")
TASK_ACCURACY: Final = Spec(
    "task_accuracy_ratio", "gauge", ("run", "task"),
    "Accuracy on a task, by index, in the newest row of the accuracy matrix.",
)  # fmt: skip
TASK_FORGETTING: Final = Spec(
    "task_forgetting_ratio", "gauge", ("run", "task"),
    "What a task has lost against its best; negative is a gain.",
)  # fmt: skip
ACCURACY: Final = Spec(
    "accuracy_ratio", "gauge", ("run",), "ACC: mean accuracy over the tasks learnt."
)
FORGETTING: Final = Spec(
    "forgetting_ratio", "gauge", ("run",), "Mean loss of the earlier tasks against their best."
)
LOSS: Final = Spec(
    "loss", "gauge", ("run",), "Mean training loss of the newest round, in nats per example."
)
RANK: Final = Spec(
    "rank", "histogram", ("run",),
    "LoRA rank asked for, once per client, trained group and step; 0 is dense.",
)  # fmt: skip
TRUNCATION: Final = Spec(
    "aggregation_truncation_error_ratio", "gauge", ("run",),
    "Largest relative error of any group that the newest round's aggregation made.",
)  # fmt: skip

ALL: Final = tuple(each for each in globals().values() if isinstance(each, Spec))
