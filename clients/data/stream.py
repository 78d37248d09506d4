"""How examples become a sequence of tasks."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clients.data.table import Table
from strategies.catalog import nearest
from strategies.errors import DataError
from strategies.recipe import StreamRecipe, TaskRecipe
from strategies.types import TaskInfo


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Stream:
    """The tasks, and the task index of every training and test example, (n,)."""

    tasks: tuple[TaskInfo, ...]
    train: NDArray[np.int64]
    test: NDArray[np.int64]


def build_stream(
    recipe: StreamRecipe,
    train: Table,
    test: Table,
    labels: tuple[str, ...],
    label_column: str | None,
) -> Stream:
    """Cut the examples into tasks; without ``label_column`` (causal LM) tasks have no labels.

    Raises: DataError for a task without training examples, a label in two tasks or in none, a value
    that is no task.
    """
    if recipe.kind == "domain-incremental":
        stream = _by_domain(recipe, train, test, labels)
    elif label_column is None:
        raise DataError(
            f"stream.kind: {recipe.kind!r} needs labels and a causal LM has none; "
            'use "domain-incremental" with task_column'
        )
    else:
        tasks = _tasks_by_label(recipe, train, test, labels, label_column)
        place = _task_of_label(tasks, labels)
        stream = Stream(
            tasks=tasks,
            train=_indices(place, train.texts(label_column)),
            test=_indices(place, test.texts(label_column)),
        )
    counts = np.bincount(stream.train, minlength=len(stream.tasks))
    for task, count in zip(stream.tasks, counts, strict=True):
        if not count:
            raise DataError(
                f"task {task.name!r} is empty: no example of {train.origin} belongs to it; "
                "expected at least one; correct the stream's tasks or add examples"
            )
    return stream


def _indices(place: Mapping[str, int], values: Sequence[str]) -> NDArray[np.int64]:
    return np.array([place[value] for value in values], dtype=np.int64)


def _by_domain(recipe: StreamRecipe, train: Table, test: Table, labels: tuple[str, ...]) -> Stream:
    if recipe.task_column is None:
        raise DataError("stream.task_column: found nothing; a domain-incremental stream needs one")
    if recipe.kind == "domain-incremental":
        _refuse_labels(recipe)
    values = train.texts(recipe.task_column), test.texts(recipe.task_column)
    names = _domains(recipe, values[0])
    place = {value: index for index, value in enumerate(names)}
    for table, found in zip((train, test), values, strict=True):
        _refuse_strangers(table, found, place)
    return Stream(
        tasks=tuple(TaskInfo(name=name, labels=labels) for name in names.values()),
        train=_indices(place, values[0]),
        test=_indices(place, values[1]),
    )


def _refuse_labels(recipe: StreamRecipe) -> None:
    if recipe.classes_per_task or any(task.labels for task in recipe.tasks or ()):
        raise DataError(
            "stream: found labels per task, but the tasks of a domain-incremental stream share all "
            "labels; remove classes_per_task and tasks.labels, or choose another kind"
        )


def _domains(recipe: StreamRecipe, found: Sequence[str]) -> dict[str, str]:
    """Task names by value of the task column, in task order."""
    if recipe.tasks is None:
        return {value: value for value in found}
    names = {task.value or task.name: task.name for task in recipe.tasks}
    if len(names) < len(recipe.tasks):
        raise DataError("stream.tasks: two tasks have the same value; each needs its own")
    return names


def _refuse_strangers(table: Table, values: Sequence[str], known: Collection[str]) -> None:
    for index, value in enumerate(values):
        if value not in known:
            hint = nearest(value, known) or "add it to stream.tasks or remove the example"
            raise DataError(
                f"{table.where(index)}: {value!r} is none of the {len(known)} tasks; {hint}"
            )


def _tasks_by_label(
    recipe: StreamRecipe, train: Table, test: Table, labels: tuple[str, ...], label_column: str
) -> tuple[TaskInfo, ...]:
    by_hand = recipe.tasks is not None and any(task.labels for task in recipe.tasks)
    ways = [by_hand, recipe.classes_per_task is not None, recipe.task_column is not None]
    if sum(ways) != 1:
        raise DataError(
            f"stream: found {sum(ways)} ways to cut a {recipe.kind} stream, expected one of tasks "
            "with labels, classes_per_task and task_column"
        )
    if recipe.classes_per_task is not None:
        return _cut(labels, recipe.classes_per_task)
    if recipe.task_column is not None:
        return _by_column(recipe, train, test, labels, label_column)
    return tuple(_by_hand(task) for task in recipe.tasks or ())


def _by_hand(task: TaskRecipe) -> TaskInfo:
    if not task.labels:
        raise DataError(f"stream.tasks: task {task.name!r} has no labels; expected at least one")
    return TaskInfo(name=task.name, labels=task.labels)


def _cut(labels: tuple[str, ...], size: int) -> tuple[TaskInfo, ...]:
    """Tasks of ``size`` labels, the last one of what is left."""
    parts = [labels[start : start + size] for start in range(0, len(labels), size)]
    names = [" ".join(part) if len(part) <= 3 else f"{part[0]} … {part[-1]}" for part in parts]
    return tuple(TaskInfo(name=n, labels=part) for n, part in zip(names, parts, strict=True))


def _by_column(
    recipe: StreamRecipe, train: Table, test: Table, labels: tuple[str, ...], label_column: str
) -> tuple[TaskInfo, ...]:
    """A task's labels are those that occur with its value, in the label set's order."""
    domains = _by_domain(recipe, train, test, labels)
    seen: list[set[str]] = [set() for _ in domains.tasks]
    for table, places in ((train, domains.train), (test, domains.test)):
        for place, label in zip(places, table.texts(label_column), strict=True):
            seen[place].add(label)
    return tuple(
        TaskInfo(name=task.name, labels=tuple(label for label in labels if label in found))
        for task, found in zip(domains.tasks, seen, strict=True)
    )


def _task_of_label(tasks: Sequence[TaskInfo], labels: Collection[str]) -> dict[str, int]:
    """Raises: DataError unless every label is in exactly one task."""
    place = dict[str, int]()
    for index, task in enumerate(tasks):
        for label in task.labels:
            if label not in labels:
                hint = nearest(label, labels) or "correct it or add it to data.labels"
                raise DataError(f"task {task.name!r}: unknown label {label!r}; {hint}")
            if label in place:
                raise DataError(
                    f"label {label!r} is in two tasks, {tasks[place[label]].name!r} and "
                    f"{task.name!r}, expected one; remove it from one of them "
                    "or use a domain-incremental stream"
                )
            place[label] = index
    homeless = [label for label in labels if label not in place]
    if homeless:
        raise DataError(
            f"{len(homeless)} labels are in no task: {', '.join(map(repr, homeless[:10]))}; "
            "add them to a task, or remove them from data.labels together with their examples"
        )
    return place
