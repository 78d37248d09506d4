"""The tables that are about single replies, which pass by once and are not kept."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, TypedDict, TypeGuard

from orchestrator.store.base import ReplyRecord, RoundRecord

_MEMORY: Final = 120  # letters of a failure's detail
_LINK: Final = ("uplink_bytes_per_second", "downlink_bytes_per_second", "link_error")

Pairs = list[tuple[float, float]]
"""What was expected, and what was found."""


class FailureRow(TypedDict):
    """Failures of one client for one reason; ``detail`` is the first one's."""

    client_id: str
    reason: str
    count: int
    steps: str
    detail: str


class Forecast(TypedDict):
    """What the cost model expected of a client, and what it was; medians over its rounds."""

    client_id: str
    cells: list[tuple[float | None, float | None, float | None]]  # expected, found, ratio
    uplink: float | None  # bytes per second, as known when the last round was planned
    downlink: float | None
    link_error: float | None


@dataclass(slots=True)
class _Trained:
    """A client's rounds of training: pairs of every forecast, and its link as known last."""

    pairs: tuple[Pairs, ...]
    link: Mapping[str, float]


@dataclass(slots=True)
class RepliesSeen:
    """What the tables of a report need of replies that have passed by."""

    _trained: dict[str, _Trained] = field(default_factory=dict)
    _failed: dict[tuple[str, str], list[tuple[int, str]]] = field(default_factory=dict)

    @classmethod
    def of(cls, rounds: Iterable[RoundRecord]) -> RepliesSeen:
        """Of all ``rounds``."""
        seen = cls()
        for _ in seen.passing(rounds):
            pass
        return seen

    def passing(self, rounds: Iterable[RoundRecord]) -> Iterator[RoundRecord]:
        """``rounds`` as they are, each looked at as it passes."""
        for record in rounds:
            for reply in record.replies:
                if reply.status == "failed":
                    self._note_failure(record.step_index, reply)
                elif record.kind == "train":
                    self._note_training(reply)
            yield record

    def forecasts(self) -> list[Forecast]:
        """Per client that trained: seconds of local training, memory of a step, bytes sent up."""
        return [
            Forecast(
                client_id=client,
                cells=[_forecast(pairs) for pairs in trained.pairs],
                uplink=trained.link.get("uplink_bytes_per_second"),
                downlink=trained.link.get("downlink_bytes_per_second"),
                link_error=trained.link.get("link_error"),
            )
            for client, trained in sorted(self._trained.items())
        ]

    def failures(self) -> list[FailureRow]:
        """Failures by client and reason, in client order."""
        return [
            FailureRow(
                client_id=client,
                reason=reason,
                count=len(times),
                steps=_few([str(step) for step, _ in times]),
                detail=_short(times[0][1]),
            )
            for (client, reason), times in sorted(self._failed.items())
        ]

    def _note_failure(self, step_index: int, reply: ReplyRecord) -> None:
        key = (reply.client_id, reply.failure_reason or "unknown")
        detail = "" if key in self._failed else reply.failure_detail or ""  # the first one is shown
        self._failed.setdefault(key, []).append((step_index, detail))

    def _note_training(self, reply: ReplyRecord) -> None:
        own = self._trained.setdefault(reply.client_id, _Trained(pairs=([], [], []), link={}))
        known = {name: reply.metrics.get(name) for name in _LINK}
        own.link = {name: value for name, value in known.items() if _is_measured(value)}
        for pairs, (expected, found) in zip(own.pairs, _told(reply), strict=True):
            if _is_measured(expected) and _is_measured(found) and expected and found:
                pairs.append((expected, found))


def _is_measured(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)


def _told(reply: ReplyRecord) -> tuple[tuple[float | None, float | None], ...]:
    """What was expected of a training and what was found: seconds, memory, bytes up."""
    metrics = reply.metrics
    # Of a simulated device where there is one: it does nothing but train.
    seconds = reply.seconds.get("compute" if "up" in reply.seconds else "train")
    return (
        (metrics.get("predicted_seconds"), seconds),
        (metrics.get("predicted_memory_bytes"), metrics.get("step_memory_bytes")),
        (metrics.get("predicted_bytes_up"), float(reply.bytes_up)),
    )


def _forecast(pairs: Pairs) -> tuple[float | None, float | None, float | None]:
    if not pairs:
        return None, None, None
    wanted, real = (statistics.median(values) for values in zip(*pairs, strict=True))
    return wanted, real, statistics.median(expected / found for expected, found in pairs)


def _few(steps: Iterable[str]) -> str:
    listed = list(steps)
    return ", ".join(listed) if len(listed) <= 6 else f"{', '.join(listed[:5])} … {listed[-1]}"


def _short(detail: str) -> str:
    return detail if len(detail) <= _MEMORY else f"{detail[:_MEMORY]}…"
