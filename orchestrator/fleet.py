"""What the server knows of each client's link and speed, from the replies on record.

Nothing of it is stored: it is folded from committed replies in their order, so that a resumed run
knows what it knew.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from orchestrator.quarantine import Ward
from orchestrator.sections import Quarantine
from orchestrator.store.base import ReplyRecord, RoundRecord
from strategies.types import ClientId, ClientProfile

# Weight of the past when a new exchange comes in: the last five count for about two thirds.
_MEMORY: Final = 0.8
_SHORTEST_SECONDS: Final = 1e-4
# 1 − correlation² of the two directions' sizes above which they can be told apart.
_TELLING: Final = 1e-3
# So few bytes take less time than the processes and polls of an exchange: they tell how long those
# take, and nothing of the line.
_SMALL_EXCHANGE_BYTES: Final = 16 * 1024
# Of a large exchange at least this share is the line's, however long small ones took.
_LEAST_TRANSFER: Final = 0.02


@dataclass(slots=True)
class LinkEstimate:
    """Seconds per byte down and up, from transfers of which often only the total is known.

    ``seconds ≈ down · bytes_down + up · bytes_up`` is solved by exponentially weighted least
    squares on relative errors.  Messages of different proportions tell the two apart; as long as
    they are all alike, both directions are given the same rate.
    """

    normal: np.ndarray = field(default_factory=lambda: np.zeros((2, 2)))
    right: np.ndarray = field(default_factory=lambda: np.zeros(2))
    squared_error: float = 0.0

    def observe(self, bytes_down: float, bytes_up: float, seconds: float) -> None:
        """Fold in one transfer or, with both directions, one exchange."""
        seconds = max(seconds, _SHORTEST_SECONDS)
        used = np.array([bytes_down, bytes_up]) > 0
        if (self.normal.diagonal()[used] > 0).all():  # a first transfer misses no prediction
            expected = float(self.seconds_per_byte() @ (bytes_down, bytes_up))
            error = math.log(max(expected, _SHORTEST_SECONDS) / seconds) ** 2
            self.squared_error = _MEMORY * self.squared_error + (1 - _MEMORY) * error
        sizes = np.array([bytes_down, bytes_up]) / seconds
        # A direction that was not used keeps what is known of it.
        kept = np.where(used, math.sqrt(_MEMORY), 1.0)
        self.normal = self.normal * np.outer(kept, kept) + np.outer(sizes, sizes)
        self.right = self.right * kept**2 + sizes

    def seconds_per_byte(self) -> np.ndarray:
        """``(down, up)``, both positive."""
        shared = float(self.right.sum() / max(self.normal.sum(), 1e-300))
        if np.linalg.det(self.normal) > _TELLING * self.normal[0, 0] * self.normal[1, 1]:
            solved = np.linalg.solve(self.normal, self.right)
            if (solved > 0).all():
                return np.asarray(solved)
        return np.array([shared, shared])

    def relative_error(self) -> float:
        """By how much a transfer usually misses its prediction; 0 while there was only one."""
        return math.sqrt(self.squared_error)

    def rates(self) -> tuple[float, float]:
        """Bytes per second ``(down, up)`` to plan with: the estimate, less its usual error."""
        down, up = 1 / self.seconds_per_byte()
        caution = 1 + self.relative_error()
        return float(down / caution), float(up / caution)


@dataclass(slots=True)
class _Speed:
    """FLOPs per second of local training, smoothed."""

    flops: float = 0.0
    seconds: float = 0.0

    def observe(self, flops: float, seconds: float) -> None:
        self.flops = _MEMORY * self.flops + flops
        self.seconds = _MEMORY * self.seconds + max(seconds, _SHORTEST_SECONDS)

    def rate(self) -> float:
        return self.flops / self.seconds


@dataclass(slots=True)
class Fleet:
    """Links and speeds of all clients, and the simulated clock where links are simulated.

    ``now`` is that clock after the last committed step.  ``attempt`` counts how often the coming
    step was begun and got too few replies, which took ``lost_seconds`` of it; a resumed run begins
    such a step with its first attempt.  ``busy`` clients are at work for an earlier step.
    ``ward`` are those who answered wrongly too often and are not asked for a while.
    ``waits`` are the seconds an exchange of next to no bytes took, the shortest of each client.
    """

    links: dict[str, LinkEstimate] = field(default_factory=dict)
    speeds: dict[str, _Speed] = field(default_factory=dict)
    waits: dict[str, float] = field(default_factory=dict)
    now: float = 0.0
    attempt: int = 0
    lost_seconds: float = 0.0
    busy: frozenset[ClientId] = frozenset()
    ward: Ward = field(default_factory=Ward)

    @classmethod
    def of(cls, rounds: Iterable[RoundRecord], rule: Quarantine | None = None) -> Fleet:
        """What ``rounds`` tell, by the run's ``rule`` of quarantine."""
        fleet = cls(ward=Ward(rule=rule))
        for record in rounds:
            fleet.observe(record)
        return fleet

    def observe(self, record: RoundRecord) -> None:
        """Fold in one committed step."""
        self.ward = self.ward.after(record)
        self.now += record.seconds.get("simulated", 0.0)
        self.attempt, self.lost_seconds = 0, 0.0
        for reply in record.replies:
            self._observe_link(reply)
            self._observe_speed(reply)

    def failed(self, simulated_seconds: float) -> None:
        """The step under way got too few replies; it took so long on simulated links."""
        self.attempt += 1
        self.lost_seconds += simulated_seconds

    def known(self, client: ClientProfile) -> ClientProfile:
        """The profile with what has been measured since."""
        link, speed = self.links.get(client.client_id), self.speeds.get(client.client_id)
        client = replace(client, exchange_seconds=self.waits.get(client.client_id, 0.0))
        if link:
            down, up = link.rates()
            client = replace(
                client,
                downlink_bytes_per_second=down,
                uplink_bytes_per_second=up,
                link_error=link.relative_error(),
            )
        if speed:
            client = replace(client, flops_per_second=speed.rate())
        measured, lent = client.uplink_bytes_per_second, client.uplink_limit_bytes_per_second
        if measured and lent:
            client = replace(client, uplink_bytes_per_second=min(measured, lent))
        return client

    def _observe_link(self, reply: ReplyRecord) -> None:
        seconds = reply.seconds
        if "up" in seconds:
            link = self.links.setdefault(ClientId(reply.client_id), LinkEstimate())
            link.observe(reply.bytes_down, 0.0, seconds["down"])
            # Of a miss only part was sent, and how long that took is not on record.
            if reply.status == "ok":
                link.observe(0.0, reply.bytes_up, seconds["up"])
        elif reply.status == "ok" and "compute" in seconds:
            self._observe_exchange(reply, seconds["total"] - seconds["compute"])

    def _observe_exchange(self, reply: ReplyRecord, seconds: float) -> None:
        """On a real line: what it took besides the client's work is only partly the bytes'."""
        client, wait = ClientId(reply.client_id), self.waits.get(reply.client_id)
        if reply.bytes_down + reply.bytes_up <= _SMALL_EXCHANGE_BYTES:
            self.waits[client] = min(seconds, wait if wait is not None else seconds)
            return
        transfer = max(seconds - (wait or 0.0), _LEAST_TRANSFER * seconds)
        link = self.links.setdefault(client, LinkEstimate())
        link.observe(reply.bytes_down, reply.bytes_up, transfer)

    def _observe_speed(self, reply: ReplyRecord) -> None:
        flops = reply.metrics.get("flops", 0.0)
        phase = "compute" if "up" in reply.seconds else "train"  # simulated devices do nothing else
        seconds = reply.seconds.get(phase) if reply.status == "ok" else None
        if flops and seconds:
            self.speeds.setdefault(reply.client_id, _Speed()).observe(flops, seconds)
