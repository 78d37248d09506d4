"""Keeps the federation of a run up to date between its steps, and every change on record."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.attendance import Attended, Lingering, Notice, noted, revised
from orchestrator.config import RunConfig
from orchestrator.federation import Federation
from orchestrator.plans import Plan
from orchestrator.rounds import TooFewRepliesError
from orchestrator.store.base import RunStore
from orchestrator.transport import OnWait, Transport
from strategies.errors import TransportError


@dataclass(slots=True, kw_only=True)
class Roll:
    """Who is there in one run."""

    run_id: str
    config: RunConfig
    transport: Transport
    store: RunStore
    federation: Federation

    def called(self, on_wait: OnWait) -> Federation:
        """The federation as it is now, with at least ``min_replies`` clients.

        Raises: TransportError if there are fewer and none comes within the round's timeout.
        """
        self.hear()
        if not isinstance(self.transport, Attended):
            return self.federation
        needed = self.config.federation.min_replies
        timeout = self.config.federation.round_timeout_seconds
        changes = self.transport.changes(at_least=needed, timeout_seconds=timeout, on_wait=on_wait)
        self.federation, notices = revised(self.federation, changes)
        for notice in notices:
            self._log(notice)
        if (there := len(self.federation.clients)) < needed:
            raise TransportError(
                f"{there} clients are there, federation.min_replies = {needed} are needed; nobody "
                f"else came within {timeout:g} s"
            )
        return self.federation

    def hear(self) -> None:
        """Put on record what was answered too late."""
        if isinstance(self.transport, Lingering):
            for late in self.transport.late_replies():
                self._log(noted(late))

    def retried(self, plan: Plan, short: TooFewRepliesError) -> None:
        """Put on record that ``plan`` got too few replies, with all of them.

        Raises: ``short`` once there is no attempt left.
        """
        attempt, attempts = plan.step.attempt + 1, self.config.federation.round_retries + 1
        replies = [
            {
                "client_id": reply.client_id,
                "status": reply.status,
                "failure_reason": reply.failure_reason,
                "failure_detail": reply.failure_detail,
                "bytes_down": reply.bytes_down,
                "bytes_up": reply.bytes_up,
                "seconds": reply.seconds.get("total"),
            }
            for reply in short.replies
        ]
        self.store.append_event(
            self.run_id,
            "attempt-failed",
            f"attempt {attempt} of {attempts}: {short}",
            {"step_index": plan.step_index, "attempt": attempt, "replies": replies},
        )
        if attempt == attempts:
            raise short

    def _log(self, notice: Notice) -> None:
        self.store.append_event(self.run_id, notice.kind, notice.message, notice.data)
