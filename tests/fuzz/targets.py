"""One input through one of the doors, judged: a crash, a wrong verdict, too much memory."""

from __future__ import annotations

import random
import traceback
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass, field

from clients.framing import FramingError, cut, joined
from orchestrator.examine import examined
from strategies.errors import TransportError, WireError
from strategies.limits import HEADER_COPIES, MAX_HEADER_BYTES, SMALL_CHANGE_BYTES
from strategies.types import ClientFailure
from strategies.wire import decode_assignment, decode_profile, decode_recipe, decode_result
from tests.fuzz import oracle, schema
from tests.fuzz.cases import ASSIGNMENTS, CASES, CLIENTS, GROUPS, PROFILES, RECIPES, Case
from tests.fuzz.mutation import spoilt

MESSAGES = tuple(case.message for case in CASES)
EVERYTHING = (*MESSAGES, *ASSIGNMENTS, *PROFILES, *RECIPES)
# Measuring takes several times as long as reading; what every input leaves behind is looked at too.
MEASURED_EVERY = 4
# A tensor is unpacked into at most float32 and float64 of its planned size, a few times.
_PLANNED_BYTES = 64 * sum(v.size for case in CASES[:1] for v in case.answer.delta.values())


@dataclass
class Tally:
    """What became of the inputs so far."""

    inputs: int = 0
    accepted: int = 0
    crashes: list[str] = field(default_factory=list)
    accepted_invalid: list[str] = field(default_factory=list)
    refused_valid: list[str] = field(default_factory=list)
    measured: int = 0
    over_limit: int = 0
    peak: int = 0  # bytes, of the input that came nearest to its limit
    limit: int = SMALL_CHANGE_BYTES
    by_target: dict[str, int] = field(default_factory=dict)

    def judge(self, name: str, message: bytes, run: Callable[[], bool], why: str) -> None:
        """Run one input, of which the oracle says ``why`` it is invalid, if it is."""
        self.inputs += 1
        self.by_target[name] = self.by_target.get(name, 0) + 1
        measured = not self.inputs % MEASURED_EVERY
        if measured:
            tracemalloc.start()
        try:
            accepted = run()
        except Exception:  # noqa: BLE001 - whatever it is, it is a crash
            self.crashes.append(f"{name}: {message!r}: {traceback.format_exc(limit=-3)}")
            return
        finally:
            if measured:
                self._weigh(tracemalloc.get_traced_memory()[1], allowance(message))
                tracemalloc.stop()
        self.accepted += accepted
        if accepted and why:
            self.accepted_invalid.append(f"{name}: {why}: {message!r}")
        if not accepted and not why:
            self.refused_valid.append(f"{name}: {message!r}")

    def _weigh(self, peak: int, limit: int) -> None:
        self.measured += 1
        self.over_limit += peak > limit
        if peak * self.limit > self.peak * limit:
            self.peak, self.limit = peak, limit


def allowance(message: bytes) -> int:
    """Bytes that reading ``message`` may take, as ``strategies/limits.py`` says."""
    header = min(len(message), MAX_HEADER_BYTES)
    return SMALL_CHANGE_BYTES + HEADER_COPIES * header + len(message) + _PLANNED_BYTES


def update(tally: Tally, case: Case, message: bytes) -> None:
    def run() -> bool:
        try:
            result = decode_result(message)
        except WireError:
            return False
        found = examined(result, case.order, GROUPS, case.chain, CLIENTS)
        if isinstance(found, ClientFailure):
            return False
        assert oracle.decoded_alike(found, message)
        return True

    tally.judge(f"update/{case.name}", message, run, oracle.verdict(message, case))


def decoded(tally: Tally, kind: str, message: bytes) -> None:
    doors: dict[str, Callable[[bytes], object]] = {
        "assignment": decode_assignment, "profile": decode_profile, "recipe": decode_recipe,
    }  # fmt: skip

    def run() -> bool:
        try:
            doors[kind](message)
        except (WireError, TransportError):
            return False
        return True

    tally.judge(kind, message, run, schema.verdict(message, kind))


def framed(tally: Tally, message: bytes, rng: random.Random) -> None:
    """Chunks of a message, some of them lost, doubled, empty or out of order."""
    chunks = [message[i : i + 37] for i in range(0, len(message), 37)] if message else []
    if rng.random() < 0.2:
        chunks = list(cut(message))
    if chunks and rng.random() < 0.6:
        at = rng.randrange(len(chunks))
        how = rng.randrange(4)
        if how == 0:
            del chunks[at]
        elif how == 1:
            chunks.insert(at, chunks[at])
        elif how == 2:
            chunks.insert(at, b"")
        else:
            rng.shuffle(chunks)
    total = rng.choice((len(message), len(message), len(message) + 1, 0, 2**40, 2**63))
    limit = rng.choice((len(message), 2**30, 2**64, 10))
    fits = total <= limit and sum(map(len, chunks)) == total and all(chunks)

    def run() -> bool:
        try:
            whole = joined(total, iter(chunks), limit_bytes=limit)
        except FramingError:
            return False
        assert whole == b"".join(chunks)
        return True

    tally.judge("framing", message, run, "" if fits else "chunks")


def one(tally: Tally, rng: random.Random) -> None:
    """One input, drawn."""
    where = rng.random()
    if where < 0.7:
        at = rng.randrange(len(CASES))
        message = MESSAGES[at]
        if rng.random() > 0.02:
            message = spoilt(message, EVERYTHING, rng)
        update(tally, CASES[at], message)
    elif where < 0.93:
        kind, sources = rng.choice(
            (("assignment", ASSIGNMENTS), ("profile", PROFILES), ("recipe", RECIPES))
        )
        decoded(tally, kind, spoilt(rng.choice(sources), EVERYTHING, rng))
    else:
        framed(tally, rng.choice(EVERYTHING)[: rng.randrange(2000)], rng)


def warm_up() -> None:
    """Read every kind of message once: validators are made on first use, and kept."""
    tally = Tally()
    for case in CASES:
        update(tally, case, case.message)
    for kind, sources in (("assignment", ASSIGNMENTS), ("profile", PROFILES), ("recipe", RECIPES)):
        for message in sources:
            decoded(tally, kind, message)
    if tally.crashes or tally.accepted != tally.inputs:
        raise AssertionError((tally.crashes, tally.refused_valid, tally.accepted_invalid))
