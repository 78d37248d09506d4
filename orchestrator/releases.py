"""Which states are published and which are withheld, read off the record; pure.

After every task the state is held against ``publish.require``.  The verdicts follow from the
committed scores alone, so that a resumed run, and whoever looks at it later, finds the same ones.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isnan
from typing import Any, Final

import numpy as np

from orchestrator.metrics import AccuracyMatrix, Flips
from orchestrator.sections import Requirements
from orchestrator.store.base import EventRecord, RoundRecord, ScoreRecord
from strategies.arrival import Arrivals

_ROUNDING: Final = 1e-9  # 0.95 − 0.90 is more than 0.05 in floating point


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What became of the state after stage ``task_index``, scored by ``step_index``.

    ``learnt`` are the tasks it had learnt.  ``compared_with`` is the last state published before,
    None where there was none.
    """

    step_index: int
    task_index: int
    learnt: tuple[int, ...]
    compared_with: Verdict | None
    reasons: tuple[str, ...]

    @property
    def published(self) -> bool:
        """Whether it met every requirement."""
        return not self.reasons


def verdicts(
    rounds: Sequence[RoundRecord],
    require: Requirements,
    task_names: Sequence[str],
    when: Arrivals | None = None,
) -> tuple[Verdict, ...]:
    """One per stage after which the model was scored, in order.

    ``when`` says when each client meets each task, None where every stage is a task.
    """
    found, scores = list[Verdict](), list[ScoreRecord]()
    for record in rounds:
        scores += record.scores
        if record.kind != "evaluate" or record.task_index < 0:
            continue
        case = _Case(
            require=require,
            task_names=task_names,
            task_index=record.task_index,
            scores=scores,
            earlier=found,
            matrix=AccuracyMatrix.of(scores, len(task_names), when=when),
        )
        found.append(
            Verdict(
                step_index=record.step_index,
                task_index=record.task_index,
                learnt=case.learnt_by(record.task_index),
                compared_with=case.release,
                reasons=tuple(case.reasons()),
            )
        )
    return tuple(found)


def last_release(found: Sequence[Verdict]) -> Verdict | None:
    """The newest one that was published."""
    return next((verdict for verdict in reversed(found) if verdict.published), None)


def described(
    rounds: Sequence[RoundRecord],
    found: Sequence[Verdict],
    events: Sequence[EventRecord],
    num_tasks: int,
) -> list[dict[str, Any]]:
    """Every verdict with the flips it goes with and where the adapter lies, for the JSON."""
    by_stage = defaultdict[int, list[ScoreRecord]](list)
    for score in (score for record in rounds for score in record.scores):
        by_stage[score.after_task].append(score)
    paths = {
        event.data.get("step_index"): event.data.get("path")
        for event in events
        if event.kind in ("published", "withheld")
    }
    return [
        {
            "task": verdict.task_index,
            "step": verdict.step_index,
            "published": verdict.published,
            "reasons": list(verdict.reasons),
            "path": paths.get(verdict.step_index),
            "compared_with": verdict.compared_with.task_index if verdict.compared_with else None,
            **_rates(Flips.of(scores, verdict.task_index, _known_before(verdict))),
            "flips": [
                {"task": task, **_rates(Flips.of(scores, verdict.task_index, [task]))}
                for task in range(num_tasks)
            ],
        }
        for verdict in found
        for scores in [by_stage[verdict.task_index]]
    ]


def _known_before(verdict: Verdict) -> tuple[int, ...]:
    """The tasks that the state it was compared with had learnt."""
    return verdict.compared_with.learnt if verdict.compared_with else ()


def stage_name(index: int, task_names: Sequence[str], num_stages: int) -> str:
    """What was learnt last: a task by name or, where clients meet tasks apart, a stage."""
    if num_stages == len(task_names):
        return f"task {index} {task_names[index]!r}"
    return f"stage {index}"


def _rates(flips: Flips) -> dict[str, Any]:
    return {
        "num_lost": flips.num_lost,
        "num_gained": flips.num_gained,
        "num_compared": flips.num_compared,
        "negative_flip_rate": flips.nfr,
        "positive_flip_rate": flips.pfr,
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class _Case:
    """A state before the gate, with all that is known by then."""

    require: Requirements
    task_names: Sequence[str]
    task_index: int
    scores: Sequence[ScoreRecord]
    earlier: Sequence[Verdict]
    matrix: AccuracyMatrix

    @property
    def release(self) -> Verdict | None:
        return last_release(self.earlier)

    def learnt_by(self, stage: int) -> tuple[int, ...]:
        """The tasks that count as learnt once ``stage`` is over."""
        return tuple(np.flatnonzero(self.matrix.rows <= stage + 1).tolist())

    def reasons(self) -> Iterator[str]:
        """Every requirement that is not met, in words and numbers."""
        yield from self._drops()
        yield from self._negative_flips()
        yield from self._too_low()
        yield from self._forgotten()

    def _drops(self) -> Iterator[str]:
        limit = self.require.max_drop
        if limit is None:
            return
        wanted = _wants("max_drop", limit)
        for task in self.learnt_by(self.task_index - 1):
            best, now = self._best(task), float(self.matrix.values[self.task_index + 1, task])
            name = f"task {task} {self.task_names[task]!r}"
            if best is None:
                continue  # never published, or never scored
            if isnan(now):
                yield f"{name} could not be scored, its best is {best:.3f}; {wanted}"
            elif _over(best - now, limit):
                lost = 100 * (best - now)
                yield f"{name} lost {lost:.1f} points against its best of {best:.3f}; {wanted}"

    def _best(self, task: int) -> float | None:
        """The task's best accuracy in a published state that had learnt it."""
        rows = [v.task_index + 1 for v in self.earlier if v.published and task in v.learnt]
        measured = self.matrix.values[rows, task]
        measured = measured[np.isfinite(measured)]
        return float(measured.max()) if len(measured) else None

    def _negative_flips(self) -> Iterator[str]:
        limit, release = self.require.max_negative_flips, self.release
        if limit is None or release is None:
            return
        flips = Flips.of(self.scores, self.task_index, release.learnt)
        num_stages = len(self.matrix.values) - 1
        since = f"the release after {stage_name(release.task_index, self.task_names, num_stages)}"
        if not flips.num_compared:
            yield f"no client has its answers to {since}; {_wants('max_negative_flips', limit)}"
        elif _over(flips.nfr, limit):
            yield (
                f"of {flips.num_compared} held-out examples that {since} had learnt, "
                f"{flips.num_lost} ({flips.nfr:.1%}) were right then and are wrong now; "
                f"{_wants('max_negative_flips', limit)}"
            )

    def _too_low(self) -> Iterator[str]:
        limit, acc = self.require.min_accuracy, self.matrix.acc()
        if limit is None or acc >= limit - _ROUNDING:
            return
        found = "could not be measured" if isnan(acc) else f"is {acc:.3f}"
        count = len(self.learnt_by(self.task_index))
        learnt = "task" if count == 1 else f"{count} tasks"
        yield f"accuracy over the {learnt} learnt {found}; {_wants('min_accuracy', limit)}"

    def _forgotten(self) -> Iterator[str]:
        limit = self.require.max_forgetting
        if limit is None or not self.earlier:
            return
        forgetting = self.matrix.forgetting()
        if isnan(forgetting):
            yield f"forgetting could not be measured; {_wants('max_forgetting', limit)}"
        elif _over(forgetting, limit):
            yield f"forgetting is {forgetting:.3f}; {_wants('max_forgetting', limit)}"


def _over(value: float, limit: float) -> bool:
    return value > limit + _ROUNDING


def _wants(name: str, limit: float) -> str:
    return f"publish.require.{name} is {limit:g}"
