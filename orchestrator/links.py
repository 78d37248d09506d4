"""Simulated links: what a round would have taken on the clients' own lines and devices.

A simulation moves messages at the speed of memory.  With a ``[links]`` section every client is
given an uplink, a downlink and, if wanted, a device speed; messages of their real size are then
clocked over those, and what would have come after the deadline is discarded as it would have been.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Final, Literal

import numpy as np
from pydantic import Field, FilePath, model_validator

from strategies.recipe import Section
from strategies.rng import rng_for
from strategies.types import ClientFailure, FailureReason, Reply

PositiveFloat = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Range = tuple[PositiveFloat, PositiveFloat]

# A client on a dead line is given up after a year of simulated time.
_FOREVER_SECONDS: Final = 365 * 24 * 3600.0
_COLUMNS: Final = (
    "client",
    "seconds",
    "uplink_bytes_per_second",
    "downlink_bytes_per_second",
)


@dataclass(frozen=True, slots=True)
class Rates:
    """Bytes per second at one moment, and the simulated second until which they hold."""

    uplink: float
    downlink: float
    until: float


class _Spread(Section):
    """Mean rates of the clients: from the slowest to the fastest, evenly spread in logarithm."""

    uplink_bytes_per_second: Range = (125e3, 1.25e6)
    downlink_bytes_per_second: Range = (500e3, 5e6)
    coherence_seconds: PositiveFloat = 10.0
    """How long a rate lasts before the line changes."""
    flops_per_second: PositiveFloat | None = None
    """Speed of every device; default: as measured here, which no two runs repeat exactly."""

    def rates(self, client: int, num_clients: int, seed: int, second: float) -> Rates:
        """The line of ``client`` at a simulated ``second``."""
        interval = int(second // self.coherence_seconds)
        factor = self.factor(rng_for(seed, "link", client), interval)
        place = rng_for(seed, "link-places").permutation(num_clients)[client]
        share = place / max(num_clients - 1, 1)
        return Rates(
            uplink=_between(self.uplink_bytes_per_second, share) * factor,
            downlink=_between(self.downlink_bytes_per_second, share) * factor,
            until=(interval + 1) * self.coherence_seconds,
        )

    def factor(self, rng: np.random.Generator, interval: int) -> float:
        """What the line makes of its mean rate in the ``interval``-th stretch of time."""
        raise NotImplementedError


class ConstantLinks(_Spread):
    """Lines that never change."""

    name: Literal["constant"] = "constant"

    def factor(self, rng: np.random.Generator, interval: int) -> float:
        return 1.0


class LognormalLinks(_Spread):
    """Slow fading: every interval the rate is drawn anew around its median."""

    name: Literal["lognormal"] = "lognormal"
    sigma: PositiveFloat = 0.5
    """Standard deviation of the logarithm."""

    def factor(self, rng: np.random.Generator, interval: int) -> float:
        # Skipping ahead in the client's own stream keeps every interval's draw where it is.
        return float(np.exp(self.sigma * rng.standard_normal(interval + 1)[-1]))


class MarkovLinks(_Spread):
    """Gilbert–Elliott: a good state and a bad one, with chances to pass from one to the other."""

    name: Literal["markov"] = "markov"
    good_to_bad: Share = 0.1
    bad_to_good: Share = 0.3
    bad_factor: Annotated[float, Field(gt=0, le=1)] = 0.1
    """What is left of the rate in the bad state."""

    def factor(self, rng: np.random.Generator, interval: int) -> float:
        good = True
        for chance in rng.random(interval + 1):
            good = chance >= self.good_to_bad if good else chance < self.bad_to_good
        return 1.0 if good else self.bad_factor


class TraceLinks(Section):
    """Measured lines: a CSV with columns client (from 0), seconds and the two rates from then on.

    Clients beyond those in the file take its lines in turn; a trace that has ended starts over.
    """

    name: Literal["trace"] = "trace"
    file: FilePath
    flops_per_second: PositiveFloat | None = None

    @model_validator(mode="after")
    def _readable(self) -> TraceLinks:
        _trace(self.file)
        return self

    def rates(self, client: int, num_clients: int, seed: int, second: float) -> Rates:
        """The line of ``client`` at a simulated ``second``."""
        lines = _trace(self.file)
        line = lines[sorted(lines)[client % len(lines)]]
        length = line[-1][0] + (line[-1][0] - line[-2][0] if len(line) > 1 else _FOREVER_SECONDS)
        lap, within = divmod(second, length)
        index = max(i for i, row in enumerate(line) if row[0] <= within)
        ends = line[index + 1][0] if index + 1 < len(line) else length
        return Rates(uplink=line[index][1], downlink=line[index][2], until=lap * length + ends)


Links = Annotated[
    ConstantLinks | LognormalLinks | MarkovLinks | TraceLinks, Field(discriminator="name")
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Journey:
    """One client's part in a round on a simulated line.

    ``compute_seconds`` as simulated or measured; ``deadline_seconds`` None where nothing is cut.
    """

    links: ConstantLinks | LognormalLinks | MarkovLinks | TraceLinks
    client: int
    num_clients: int
    seed: int
    start: float
    deadline_seconds: float | None

    def clocked(self, reply: Reply, compute_seconds: float) -> Reply:
        """The reply with its simulated times; one that came too late is a failure."""
        arrived = self._transfer(reply.bytes_down, self.start, lambda rates: rates.downlink)
        trained = arrived + compute_seconds
        sent = self._transfer(reply.bytes_up, trained, lambda rates: rates.uplink)
        times = {
            "down": arrived - self.start,
            "compute": compute_seconds,
            "up": sent - trained,
        }
        total, limit = sent - self.start, self.deadline_seconds
        if limit is None or total <= limit:
            return replace(reply, link=times, seconds=total)
        return self._missed(reply, times, total, limit)

    def _missed(self, reply: Reply, times: dict[str, float], total: float, limit: float) -> Reply:
        slowest = max(times, key=lambda name: times[name])
        detail = f"would have taken {total:.1f} s of {limit:g} s, {times[slowest]:.1f} s {slowest}"
        late = ClientFailure(
            assignment_id=reply.result.assignment_id,
            client_id=reply.result.client_id,
            reason=FailureReason.DEADLINE,
            detail=detail,
        )
        sent = max(0.0, min(1.0, (limit - total + times["up"]) / max(times["up"], 1e-9)))
        return replace(
            reply, result=late, bytes_up=int(sent * reply.bytes_up), link=times, seconds=limit
        )

    def _transfer(
        self, num_bytes: float, start: float, direction: Callable[[Rates], float]
    ) -> float:
        """The second at which ``num_bytes`` begun at ``start`` have gone through."""
        now, left = start, float(num_bytes)
        while left > 0 and now - start < _FOREVER_SECONDS:
            rates = self.links.rates(self.client, self.num_clients, self.seed, now)
            rate = direction(rates)
            passed = min(left, rate * (rates.until - now))
            left -= passed
            now = rates.until if left > 0 else now + passed / rate
        return now


def _between(bounds: Range, share: float) -> float:
    low, high = bounds
    return float(low * (high / low) ** share)


def _trace(path: Path) -> dict[int, list[tuple[float, float, float]]]:
    """Rows ``(seconds, uplink, downlink)`` per client, in time order, the first at second 0.

    Raises: ValueError naming the row that cannot be used.
    """
    lines = dict[int, list[tuple[float, float, float]]]()
    for number, row in _rows(path):
        try:
            client, seconds, up, down = int(row[0]), *map(float, row[1:])
        except ValueError:
            raise ValueError(f"{path}, row {number}: {row}, expected four numbers") from None
        if up <= 0 or down <= 0:
            raise ValueError(f"{path}, row {number}: a rate of 0; give a small one instead")
        line = lines.setdefault(client, [])
        if seconds != 0 and not line:
            raise ValueError(f"{path}, row {number}: client {client} begins at {seconds}, not 0")
        if line and seconds <= line[-1][0]:
            raise ValueError(f"{path}, row {number}: seconds of client {client} do not rise")
        line.append((seconds, up, down))
    if not lines:
        raise ValueError(f"{path} holds no rows, expected columns {', '.join(_COLUMNS)}")
    return lines


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.reader(file)
        if tuple(next(reader, ())) != _COLUMNS:
            raise ValueError(f"{path} must begin with the row {','.join(_COLUMNS)}")
        for number, row in enumerate(reader, start=2):
            if row:
                yield number, row
