"""Numbers a client claims, against what the plan asked for and what its profile allows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from strategies.limits import MAX_BYTES, MAX_COUNT, MAX_SECONDS, PHASES
from strategies.types import (
    Array,
    Assignment,
    ClientProfile,
    GroupName,
    GroupSpec,
    LowRank,
    Score,
    Update,
)


def most_trained_on(assignment: Assignment, client: ClientProfile | None) -> int:
    """Examples a training can have looked at for the first time; all it holds, from a memory."""
    if client is None:
        return MAX_COUNT
    work = assignment.work
    if work is None or work.source == "memory":
        return sum(client.num_train)
    return sum(client.num_train[task] for task in work.tasks)


def wrong_counts(
    update: Update,
    assignment: Assignment,
    groups: Mapping[GroupName, GroupSpec],
    client: ClientProfile | None,
) -> str:
    """What is wrong with the aggregation weights: a group not planned, a shape, a range."""
    if update.num_examples.keys() - assignment.groups.keys():
        return f"example counts for {sorted(update.num_examples)}, expected the planned groups"
    most = most_trained_on(assignment, client)
    held = sum(client.num_train) if client else MAX_COUNT
    for name, plan in assignment.groups.items():
        count = update.num_examples.get(name)
        if count is None:
            if update.delta:
                return f"no example count for group {name}"
            continue
        rows = {shape[0] for shape in groups[name].parts.values() if shape}
        per_row = not isinstance(plan, LowRank) and len(rows) == 1 and count.shape == (min(rows),)
        if not (count.shape == () or per_row):
            return f"example count of {name} has shape {count.shape}, expected () or one per row"
        # Rows also count what is remembered.
        if fault := _wrong_count(count, held if per_row else most):
            return f"example count of {name} is {fault}"
    return ""


def _wrong_count(count: Array, allowed: int) -> str:
    if (count < 0).any():
        return "negative"
    total = sum(count.ravel().tolist())  # Python's sum, so that no int64 turns over
    return f"{total}, the client has {allowed} of these tasks" if total > allowed else ""


def wrong_claims(update: Update, assignment: Assignment, client: ClientProfile | None) -> str:
    """What is wrong with scores, times, metrics, memory or sums over what is remembered."""
    checks = (
        _wrong_scores(update, assignment, client),
        _wrong_times(update),
        _wrong_metrics(update, assignment, client),
        _wrong_memory(update, assignment, client),
    )
    return next(filter(None, checks), "")


def _wrong_scores(update: Update, assignment: Assignment, client: ClientProfile | None) -> str:
    plan = assignment.evaluation
    if fault := next(filter(None, map(_wrong_score, update.scores)), ""):
        return fault
    if fault := _unexpected(
        [score.task_index for score in update.scores], plan.tasks if plan else (), "scores"
    ):
        return fault
    for score in update.scores:
        most = client.num_test[score.task_index] if client else MAX_COUNT
        if plan and plan.max_examples is not None:
            most = min(most, plan.max_examples)
        if score.num_examples > most:
            return f"{score} counts more examples than there are: {most}"
        if score.num_compared and (plan is None or plan.release is None):
            return f"{score} compares with a release nobody named"
    return ""


def _wrong_score(score: Score) -> str:
    counts = (score.num_correct, score.num_lost, score.num_gained)
    flipped = score.num_lost + score.num_gained
    in_order = flipped <= score.num_compared <= score.num_examples
    if min(counts) < 0 or score.num_correct > score.num_examples or not in_order:
        return f"{score} counts more examples than there are"
    # What was gained is right now, what was lost is wrong now.
    wrong = score.num_examples - score.num_correct
    if score.num_gained > score.num_correct or score.num_lost > wrong:
        return f"{score} counts impossible flips"
    # NaN where nothing was looked at.
    return f"{score} has a negative loss" if score.loss_sum < 0 else ""


def _wrong_times(update: Update) -> str:
    if strange := update.seconds.keys() - PHASES:
        return f"seconds of {sorted(strange)[:5]}, expected those of {sorted(PHASES)}"
    if not all(0 <= value <= MAX_SECONDS for value in update.seconds.values()):
        return f"seconds {dict(update.seconds)}, expected 0 to {MAX_SECONDS:g}"
    if not 0 <= update.peak_memory_bytes <= MAX_BYTES:
        return f"a peak of {update.peak_memory_bytes} bytes"
    return ""


def _wrong_metrics(update: Update, assignment: Assignment, client: ClientProfile | None) -> str:
    if update.metrics and assignment.work is None:
        return f"metrics {sorted(update.metrics)[:5]} where nothing was to be trained"
    if "num_examples" not in update.metrics:
        return ""
    count, most = update.metrics["num_examples"], most_trained_on(assignment, client)
    if not (0 <= count <= most and count == int(count)):
        return f"num_examples {count:g}, the client has {most} of these tasks"
    return ""


def _wrong_memory(update: Update, assignment: Assignment, client: ClientProfile | None) -> str:
    work = assignment.work
    asked = work is not None and work.replay.measured
    # A client that notices boundaries counts tasks itself, at most one more with every training.
    tasks = range(max(len(client.num_train) if client else 0, assignment.step_index + 1))
    found = [sums.task_index for sums in update.remembered]
    if fault := _unexpected(found, tasks if asked else (), "sums over remembered examples"):
        return fault
    # A memory of joint training files everything under the last task.
    most = sum(client.num_train) if client else MAX_COUNT
    for sums in update.remembered:
        finite = math.isfinite(sums.loss_sum) and math.isfinite(sums.loss_rise)
        if not (finite and 0 <= sums.num_examples <= most and sums.loss_rise >= 0):
            return f"{sums} counts more than the {most} examples there are, or no loss"
    return ""


def _unexpected(found: list[int], asked: Iterable[int], what: str) -> str:
    allowed = asked if isinstance(asked, range) else set(asked)
    if strange := [task for task in found if task not in allowed]:
        return f"{what} of tasks {strange[:5]}, which were not asked for"
    return f"{what} of a task twice" if len(set(found)) != len(found) else ""


def not_finite(update: Update, most: float) -> str:
    """The first tensor, metric or statistic that is no finite number, or beyond ``most``."""
    for key, value in update.delta.items():
        if bad := int((~(np.abs(value) <= most)).sum()):
            return f"{key} holds {bad} values that are not finite, or beyond {most:g}"
    for key, value in update.sketches.items():
        if bad := int((~np.isfinite(value)).sum()):
            return f"{key} holds {bad} values that are not finite"
    return next((f"{name} is {x}" for name, x in _scalars(update) if not math.isfinite(x)), "")


def _scalars(update: Update) -> Iterator[tuple[str, float]]:
    yield from update.metrics.items()
    for group, values in update.statistics.items():
        for name, number in values.items():
            yield f"{name} of {group}", number
