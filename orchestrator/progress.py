"""What a running run tells the world, and what it hears back: progress, lease, orders to stop."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, Final

from orchestrator.metrics import headline
from orchestrator.owners import new_owner
from orchestrator.plans import Plan
from orchestrator.scoreboard import Scoreboard
from orchestrator.store.base import LEASE, UNDER_WAY, RoundRecord, RunStatus, RunStore
from strategies.arrival import Arrivals
from strategies.errors import LeaseLostError, RunInterrupted

_PUBLISH_EVERY_SECONDS: Final = 1.0
_PHASES: Final = {
    "train": "training",
    "evaluate": "evaluating",
    "probe": "probing",
    "head": "summing",
    "replay": "replaying",
}


@dataclass(slots=True)
class Progress:
    """Keeps the run's lease and publishes its progress with it, at most once a second.

    Readers see ``phase``, ``task``, ``round``, ``clients_done`` of ``clients_asked``, ``loss``,
    ``accuracy`` per task, bytes both ways, ``steps_done`` of ``steps`` and the headline metrics;
    ``stages``, how many there are, where clients do not all meet the same task at once.
    """

    run_id: str
    store: RunStore
    num_steps: int = 0
    num_tasks: int = 0
    board: Scoreboard = field(default_factory=Scoreboard)
    owner: str = field(default_factory=new_owner)
    shown: dict[str, Any] = field(default_factory=dict)
    _published: float = 0.0

    def begin(self, num_steps: int, num_tasks: int, when: Arrivals | None = None) -> None:
        """Begin to count; ``count`` takes up what is committed already."""
        self.num_steps, self.num_tasks, self.board = num_steps, num_tasks, Scoreboard(when)
        if when:
            self.shown["stages"] = when.num_stages
        self.show(steps=num_steps, bytes_up=0, bytes_down=0, rounds=0, steps_done=0)

    def count(self, record: RoundRecord) -> None:
        """Take up a committed step."""
        self.board.note(record)
        for name in ("bytes_up", "bytes_down"):
            self.shown[name] += sum(getattr(reply, name) for reply in record.replies)
        self.shown["steps_done"] += 1
        self.shown["rounds"] += record.kind == "train"

    def show(self, **values: Any) -> None:
        """Change what is shown, and publish it at the next chance."""
        self.shown |= values
        self.publish()

    def planned(self, plan: Plan) -> None:
        """A step begins."""
        self._published = 0.0
        self.show(
            phase=_PHASES[plan.step.kind],
            task=plan.step.task_index,
            round=plan.step.round_index,
            rounds_in_task=plan.step.num_rounds,
            clients_asked=len(plan.orders),
            clients_done=0,
        )

    def waiting(self, replies: int) -> None:
        """Called often while a step is under way.

        Raises: RunInterrupted if somebody asked the run to stop, LeaseLostError if another
        orchestrator leads it now.
        """
        self.shown["clients_done"] = replies
        self.publish()

    def committed(self, record: RoundRecord) -> None:
        """A step is in the database."""
        self.count(record)
        self.shown["clients_done"] = len(record.replies)
        if record.kind == "train":
            self.shown["loss"] = record.metrics.get("loss")
        self._published = 0.0  # with what comes next

    def measured(self) -> None:
        """A row of the accuracy matrix is complete."""
        self.show(**headline(self.board.scorings, self.num_tasks, self.board.when))

    def publish(self) -> None:
        """Renew the lease with the newest progress unless that was just done."""
        now = time.monotonic()
        if now - self._published < _PUBLISH_EVERY_SECONDS:
            return
        self._published = now
        if not self.store.renew_lease(self.run_id, self.owner, LEASE, progress=self.shown):
            raise LeaseLostError(
                f"run {self.run_id} is led by another orchestrator, or was ended or deleted"
            )
        if self.store.get_run(self.run_id).status is RunStatus.STOPPING:
            raise RunInterrupted("asked to stop")

    def lead(self) -> None:
        """See that the run is led from here, whenever that was last seen.

        Raises: as ``waiting``.
        """
        self._published = 0.0
        self.publish()

    def end(self, status: RunStatus, reason: str) -> None:
        """Publish the last word, end the run and give the lease back.

        Raises: LeaseLostError, with nothing written, if the run is led by another orchestrator.
        """
        self.store.renew_lease(self.run_id, self.owner, LEASE, progress=self.shown)
        self.store.transition(
            self.run_id, status, expected=UNDER_WAY, reason=reason, owner=self.owner
        )
