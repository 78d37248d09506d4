"""Who answers wrongly again and again, and is not asked for a while.

Nothing of it is stored: it is folded from committed steps in their order, so that a resumed run
decides as the one before it did.  Attempts of a step that was never committed do not count.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from orchestrator.federation import Federation
from orchestrator.sections import Federation as FederationSection
from orchestrator.sections import Quarantine
from orchestrator.store.base import EventRecord, RoundKind, RoundRecord
from strategies.errors import RoundFailedError
from strategies.types import ClientId, FailureReason

IS_FAULT: Final[Mapping[FailureReason, bool]] = {
    # What it sent is wrong, or it is another client than it should be.
    FailureReason.MALFORMED: True,
    FailureReason.WRONG_PLAN: True,
    FailureReason.WRONG_BASE: True,
    FailureReason.WRONG_SHAPE: True,
    FailureReason.NOT_FINITE: True,
    FailureReason.OUTLIER: True,
    # Its machine, its link or the run's own timing.
    FailureReason.CRASHED: False,
    FailureReason.DEADLINE: False,
    FailureReason.UNREACHABLE: False,
    FailureReason.NO_EXAMPLES: False,
    FailureReason.STALE: False,
    FailureReason.MISSING_TENSORS: False,
    FailureReason.BUSY: False,
    FailureReason.NO_ROOM: False,
}
"""Which reasons of a failure count against the client."""
_REASONS: Final = frozenset(reason.value for reason, fault in IS_FAULT.items() if fault)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stay:
    """A client's time in quarantine: until ``until`` training rounds of the run are closed.

    ``why`` are its faults by reason, such as ``3 not-finite``.
    """

    until: int
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ward:
    """Everybody's faults and who is in quarantine, after ``rounds`` training rounds of a run.

    ``faults`` are the reasons since the client's last release, in order.  Without a ``rule`` nobody
    is put in quarantine.
    """

    rule: Quarantine | None = None
    rounds: int = 0
    faults: Mapping[ClientId, tuple[str, ...]] = field(default_factory=dict)
    stays: Mapping[ClientId, Stay] = field(default_factory=dict)

    @classmethod
    def of(cls, rule: Quarantine | None, records: Iterable[RoundRecord]) -> Ward:
        """What committed steps come to."""
        ward = cls(rule=rule)
        for record in records:
            ward = ward.after(record)
        return ward

    def after(self, record: RoundRecord) -> Ward:
        """The ward once ``record`` is committed."""
        return self.told(record.kind, ((r.client_id, r.failure_reason) for r in record.replies))

    def told(self, kind: RoundKind, failures: Iterable[tuple[str, str | None]]) -> Ward:
        """The ward once a step is committed whose replies failed by client for these reasons."""
        if self.rule is None:
            return self
        rounds = self.rounds + (kind == "train")
        stays = {client: stay for client, stay in self.stays.items() if rounds < stay.until}
        faults = dict(self.faults)
        for client_id, reason in failures:
            client = ClientId(client_id)
            if reason in _REASONS and client not in self.stays:
                faults[client] = (*faults.get(client, ()), str(reason))
        for client in sorted(faults):
            if len(faults[client]) >= self.rule.faults:
                until = rounds + self.rule.rounds
                stays[client] = Stay(until=until, why=_counted(faults.pop(client)))
        return replace(self, rounds=rounds, faults=faults, stays=stays)

    def noted(self, record: RoundRecord) -> RoundRecord:
        """``record`` with events of whom it puts in quarantine, and of whom it releases."""
        after = self.after(record)
        released = sorted(self.stays.keys() - after.stays.keys())
        put = sorted(after.stays.keys() - self.stays.keys())
        events = [
            *(_released(client, self.stays[client], record) for client in released),
            *(_put(client, after.stays[client], after, record) for client in put),
        ]
        return replace(record, events=(*record.events, *events))

    def check(self, federation: Federation, asked: FederationSection) -> None:
        """See to it that enough of the clients that are there may be asked.

        Raises: RoundFailedError naming those in quarantine, with their faults.
        """
        there = [client.client_id for client in federation.clients]
        kept = [client for client in there if client in self.stays]
        needed = max(asked.min_replies, asked.min_clients or 0)
        if not kept or len(there) - len(kept) >= needed:
            return
        which = "min_clients" if needed == asked.min_clients else "min_replies"
        reasons = "\n".join(f"  - {client}: {self.stays[client].why}" for client in kept)
        raise RoundFailedError(
            f"{len(there) - len(kept)} of the {len(there)} clients that are there are not in "
            f"quarantine, federation.{which} = {needed} are needed; mend these clients, or lower "
            f"{which} or raise federation.quarantine.faults, and start again\n{reasons}"
        )


def _counted(reasons: Iterable[str]) -> str:
    return ", ".join(f"{number} {reason}" for reason, number in sorted(Counter(reasons).items()))


def _put(client: ClientId, stay: Stay, ward: Ward, record: RoundRecord) -> EventRecord:
    rounds = stay.until - ward.rounds
    return EventRecord(
        at=record.committed_at,
        kind="client-quarantined",
        message=f"{client} is not asked for {rounds} training rounds: {stay.why}",
        data={"client_id": client, "step_index": record.step_index, "rounds": rounds}
        | {"reasons": stay.why},
    )


def _released(client: ClientId, stay: Stay, record: RoundRecord) -> EventRecord:
    return EventRecord(
        at=record.committed_at,
        kind="client-released",
        message=f"{client} is asked again; it was in quarantine for {stay.why}",
        data={"client_id": client, "step_index": record.step_index},
    )
