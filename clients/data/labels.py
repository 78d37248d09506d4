"""The label set, its order, and which part of it belongs to which tasks."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from clients.data.table import Table
from strategies.catalog import nearest
from strategies.errors import DataError
from strategies.types import TaskInfo


def label_names(tasks: Sequence[TaskInfo]) -> tuple[str, ...]:
    """All classes; a class's index is its place here.

    INVARIANT: labels stand in the order in which tasks bring them, so that tasks alone, without any
    data, say which row of a head belongs to which class.
    """
    return tuple(dict.fromkeys(label for task in tasks for label in task.labels))


def classes_of(tasks: Sequence[TaskInfo], indices: Collection[int]) -> NDArray[np.int64]:
    """Class indices of the tasks at ``indices``, ascending."""
    place = {label: index for index, label in enumerate(label_names(tasks))}
    found = {place[label] for index in indices for label in tasks[index].labels}
    return np.array(sorted(found), dtype=np.int64)


def class_mask(classes: Collection[int] | NDArray[np.int64], count: int) -> NDArray[np.bool_]:
    """Which of ``count`` classes are among ``classes``, (count,)."""
    mask = np.zeros(count, dtype=np.bool_)
    mask[np.asarray(classes, dtype=np.int64)] = True
    return mask


def read_labels(
    train: Table, test: Table, column: str, given: tuple[str, ...] | None
) -> tuple[str, ...]:
    """The label set in order: as ``given``, as the source declares it, or all of ``train``, sorted.

    Raises: DataError naming file, row and label of an example outside the set.
    """
    found = set(train.texts(column))
    declared = given or train.declared.get(column)
    labels = declared or tuple(sorted(found, key=_natural))
    twice = [label for label in labels if labels.count(label) > 1]
    if twice:
        raise DataError(f"data.labels: {twice[0]!r} is declared twice; a label is declared once")
    known = set(labels)
    the_set = f"the {len(labels)} {'declared labels' if declared else f'labels of {train.origin}'}"
    for table in (train, test):
        for index, label in enumerate(table.texts(column)):
            if label not in known:
                hint = nearest(label, labels) or "correct it or add it to data.labels"
                raise DataError(
                    f"{table.where(index)}: label {label!r} is none of {the_set}; {hint}"
                )
    return labels


def _natural(label: str) -> tuple[int, str]:
    return (int(label) if label.isascii() and label.isdecimal() else -1, label)
