"""Which kills to try: every point at its first, middle and last time, and more at random."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import cycle, islice
from typing import Final

import numpy as np

from strategies.rng import rng_for
from tests.chaos.faults import Fault
from tests.chaos.points import POINTS, Point
from tests.chaos.trials import Golden, Trial

_RAY, _RAY_TRIALS, _EVERY = "ray", 4, 6
_AGAIN: Final = 3
"""So many kills of the same run follow the first, each of the process that resumes it."""


def trials(
    goldens: Mapping[str, Golden], points: Sequence[Point], kills: int | None, seed: int
) -> list[Trial]:
    """Kill at the middle hit of every point, then at the last one, and at first ones meanwhile.

    A run that is resumed after such a kill is killed again the first time it comes by a point, some
    times over; these points take turns, so that each is struck at several places of a run.  With a
    number, as many of these as have so many kills, and random ones once all have been tried.
    """
    rng = rng_for(seed, "chaos")
    local = {name: golden for name, golden in goldens.items() if name != _RAY}
    found = [*_systematic(local, points, rng)]
    if _RAY in goldens:
        found = _interleaved(found, [*_on_ray(goldens[_RAY], points, rng)])
    if kills is None:
        return found
    return _with_kills(kills, found, _drawn(goldens, points, rng))


def _systematic(
    goldens: Mapping[str, Golden], points: Sequence[Point], rng: np.random.Generator
) -> Iterator[Trial]:
    """Each point in the first run that comes by it; the middle hits of all before the last."""
    done, first = set[str](), list[tuple[str, Point, Iterator[Fault]]]()
    for name, golden in goldens.items():
        here = _come_by(golden, points)
        again = _firsts(golden, points, rng)
        first += [(name, point, again) for point in here if point.name not in done]
        done |= {point.name for point in here}
    first = [first[int(i)] for i in rng.permutation(len(first))]
    for name, point, again in first:
        count = goldens[name].counts[point.name]
        yield _trial(name, _kill(point, (count + 1) // 2), *islice(again, _AGAIN))
    for name, point, again in first:
        count = goldens[name].counts[point.name]
        if count > 1:
            yield _trial(name, _kill(point, count), *islice(again, _AGAIN))
    if not first:  # of points that only a resumed run comes by
        for name, golden in goldens.items():
            for again in _firsts(golden, points, rng, once=True):
                yield _trial(name, _anywhere(golden, rng), again)


def _firsts(
    golden: Golden, points: Collection[Point], rng: np.random.Generator, *, once: bool = False
) -> Iterator[Fault]:
    """First hits in resumed runs, in an order of their own."""
    here = [p for p in points if p.side == "resume" or p.name in golden.counts]
    faults = [_kill(here[int(i)], 1) for i in rng.permutation(len(here))]
    return iter(faults) if once else cycle(faults)


def _drawn(
    goldens: Mapping[str, Golden], points: Sequence[Point], rng: np.random.Generator
) -> Iterator[Trial]:
    """Any of the points at any hit of any run, again and again."""
    names = sorted(name for name in goldens if _come_by(goldens[name], points))
    while names:
        name = names[int(rng.integers(len(names)))]
        trial = _trial(name, _anywhere(goldens[name], rng, points))
        yield _of_machines(trial) if name == _RAY else trial


def _on_ray(golden: Golden, points: Sequence[Point], rng: np.random.Generator) -> Iterator[Trial]:
    """Kills of a whole machine: whoever comes by takes the run's own process with it."""
    here = _come_by(golden, points)
    sides = [[p for p in here if p.side == side] for side in ("client", "server")]
    again = _firsts(golden, points, rng)
    for of_side in islice(cycle([side for side in sides if side] or [here]), _RAY_TRIALS):
        if of_side:
            first = _anywhere(golden, rng, of_side)
            yield _of_machines(_trial(_RAY, first, *islice(again, _AGAIN)))


def _of_machines(trial: Trial) -> Trial:
    faults = tuple(replace(fault, action="kill-all") for fault in trial.faults)
    return replace(trial, faults=faults)


def _anywhere(
    golden: Golden, rng: np.random.Generator, points: Collection[Point] | None = None
) -> Fault:
    here = _come_by(golden, points or POINTS.values())
    point = here[int(rng.integers(len(here)))]
    return _kill(point, int(rng.integers(golden.counts[point.name])) + 1)


def _come_by(golden: Golden, points: Collection[Point]) -> list[Point]:
    """Those that a run comes by from its beginning on."""
    return [p for p in points if golden.counts.get(p.name) and p.side != "resume"]


def _interleaved(many: list[Trial], few: list[Trial]) -> list[Trial]:
    """One of ``few``, which take long, between some of ``many``."""
    found, rest = list[Trial](), iter(few)
    for index, trial in enumerate(many):
        if index % _EVERY == 0:
            found += islice(rest, 1)
        found.append(trial)
    return [*found, *rest]


def _with_kills(kills: int, first: Iterable[Trial], then: Iterator[Trial]) -> list[Trial]:
    found, counted = list[Trial](), 0
    for trial in (*first, *islice(then, kills)):
        if counted >= kills:
            break
        found.append(replace(trial, faults=trial.faults[: kills - counted]))
        counted += len(found[-1].faults)
    return found


def _kill(point: Point, hit: int) -> Fault:
    return Fault(point=point.name, hit=hit)


def _trial(name: str, *faults: Fault) -> Trial:
    return Trial(recipe=name, faults=faults)
