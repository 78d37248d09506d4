"""Cutting examples into tasks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from clients.data import classes_of
from clients.data.labels import label_names, read_labels
from clients.data.stream import Stream, build_stream
from clients.data.table import Table
from strategies.errors import DataError
from strategies.recipe import StreamRecipe
from strategies.types import TaskInfo

LABELS = ("a", "b", "c", "d")


def _table(labels: Sequence[str], farms: Sequence[str] | None = None, name: str = "train") -> Table:
    columns: dict[str, Any] = {"label": list(labels), "farm": list(farms or ["x"] * len(labels))}
    return Table(
        origin=name, names=tuple(columns), columns=columns, numbers=range(1, len(labels) + 1)
    )


def _build(train: Table, test: Table | None = None, **recipe: Any) -> Stream:
    stream = StreamRecipe.model_validate({"kind": "class-incremental", **recipe})
    return build_stream(stream, train, test or train, LABELS, "label")


def test_classes_per_task_cuts_the_label_set_in_order() -> None:
    stream = _build(_table("dacb"), classes_per_task=3)
    assert stream.tasks == (
        TaskInfo(name="a b c", labels=("a", "b", "c")),
        TaskInfo(name="d", labels=("d",)),
    )
    assert stream.train.tolist() == [1, 0, 0, 0]


def test_tasks_by_hand_decide_the_order_of_classes() -> None:
    stream = _build(
        _table("abcd"),
        kind="task-incremental",
        tasks=[{"name": "late", "labels": ["d", "b"]}, {"name": "early", "labels": ["a", "c"]}],
    )
    assert [task.name for task in stream.tasks] == ["late", "early"]
    assert label_names(stream.tasks) == ("d", "b", "a", "c")
    assert classes_of(stream.tasks, [1]).tolist() == [2, 3]
    assert stream.train.tolist() == [1, 0, 1, 0]


def test_a_task_column_groups_labels_in_order_of_first_appearance() -> None:
    stream = _build(_table("dbca", ["y", "x", "y", "x"]), task_column="farm")
    assert stream.tasks == (
        TaskInfo(name="y", labels=("c", "d")),
        TaskInfo(name="x", labels=("a", "b")),
    )
    reordered = _build(
        _table("dbca", ["y", "x", "y", "x"]),
        task_column="farm",
        tasks=[{"name": "first", "value": "x"}, {"name": "y"}],
    )
    assert [task.name for task in reordered.tasks] == ["first", "y"]


def test_domains_share_all_labels() -> None:
    train, test = _table("abcd", ["x", "y", "x", "y"]), _table("a", ["y"])
    stream = _build(train, test, kind="domain-incremental", task_column="farm")
    assert [task.labels for task in stream.tasks] == [LABELS, LABELS]
    assert stream.train.tolist() == [0, 1, 0, 1]
    assert stream.test.tolist() == [1]
    assert classes_of(stream.tasks, [0, 1]).tolist() == [0, 1, 2, 3]


def test_domains_without_labels_have_empty_tasks() -> None:
    recipe = StreamRecipe(kind="domain-incremental", task_column="farm")
    stream = build_stream(recipe, _table("ab", ["x", "y"]), _table("a"), (), None)
    assert stream.tasks == (TaskInfo(name="x", labels=()), TaskInfo(name="y", labels=()))
    assert classes_of(stream.tasks, [0, 1]).dtype == np.int64
    assert not len(classes_of(stream.tasks, [0, 1]))


@pytest.mark.parametrize(
    ("recipe", "complaint"),
    [
        ({}, "found 0 ways to cut"),
        ({"classes_per_task": 2, "task_column": "farm"}, "found 2 ways to cut"),
        (
            {
                "tasks": [
                    {"name": "t", "labels": ["a", "b"]},
                    {"name": "u", "labels": ["b", "c", "d"]},
                ]
            },
            "label 'b' is in two tasks, 't' and 'u'",
        ),
        ({"tasks": [{"name": "t", "labels": ["a", "b"]}]}, "2 labels are in no task: 'c', 'd'"),
        ({"tasks": [{"name": "t", "labels": ["a", "e"]}]}, "task 't': unknown label 'e'"),
        (
            {"tasks": [{"name": "t", "labels": list(LABELS)}, {"name": "u"}]},
            "task 'u' has no labels",
        ),
        ({"task_column": "farn"}, "no column 'farn'.*did you mean 'farm'"),
        ({"kind": "domain-incremental"}, "stream.task_column: found nothing"),
        (
            {"kind": "domain-incremental", "task_column": "farm", "classes_per_task": 1},
            "share all labels",
        ),
        (
            {"kind": "domain-incremental", "task_column": "farm", "tasks": [{"name": "xx"}]},
            r"train, row 1: 'x' is none of the 1 tasks; did you mean 'xx'",
        ),
        (
            {
                "kind": "domain-incremental",
                "task_column": "farm",
                "tasks": [{"name": "x"}, {"name": "y"}],
            },
            "task 'y' is empty: no example of train",
        ),
        (
            {
                "kind": "domain-incremental",
                "task_column": "farm",
                "tasks": [{"name": "x"}, {"name": "z", "value": "x"}],
            },
            "two tasks have the same value",
        ),
    ],
)
def test_a_stream_that_cannot_be_is_refused(recipe: dict[str, Any], complaint: str) -> None:
    with pytest.raises(DataError, match=complaint):
        _build(_table("abcd"), **recipe)


def test_a_label_in_two_domains_is_refused_when_classes_arrive() -> None:
    with pytest.raises(DataError, match="label 'a' is in two tasks, 'x' and 'y'"):
        _build(_table("abcda", ["x", "x", "x", "x", "y"]), task_column="farm")


def test_a_task_only_the_test_split_has_is_empty() -> None:
    with pytest.raises(DataError, match="task 'd' is empty"):
        _build(_table("abc"), _table("abcd"), classes_per_task=3)


def test_class_incremental_text_generation_is_refused() -> None:
    with pytest.raises(DataError, match="needs labels and a causal LM has none"):
        build_stream(
            StreamRecipe(kind="class-incremental", classes_per_task=1),
            _table("a"),
            _table("a"),
            (),
            None,
        )


def test_labels_found_are_sorted_and_numbers_by_value() -> None:
    table = _table(["10", "9", "b", "1"])
    assert read_labels(table, table, "label", None) == ("b", "1", "9", "10")
    assert read_labels(table, table, "label", ("b", "10", "1", "9")) == ("b", "10", "1", "9")


def test_a_label_outside_the_declared_set_names_file_row_and_nearest() -> None:
    train, test = _table(["cat", "dog"]), _table(["dog", "cta"], name="test")
    with pytest.raises(
        DataError, match=r"test, row 2: label 'cta' is none of the 2 declared.*did you mean 'cat'"
    ):
        read_labels(train, test, "label", ("cat", "dog"))
    with pytest.raises(
        DataError, match=r"test, row 2: label 'cta' is none of the 2 labels of train"
    ):
        read_labels(train, test, "label", None)


def test_a_label_declared_twice_is_refused() -> None:
    with pytest.raises(DataError, match="'cat' is declared twice"):
        read_labels(_table(["cat"]), _table(["cat"]), "label", ("cat", "cat"))
