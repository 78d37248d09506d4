"""The JSON documents: their typed and documented shape, and where each number comes from."""

from __future__ import annotations

import dataclasses
import json
import re
import types
import typing
from typing import Any

import numpy as np
import pytest

from orchestrator import results
from orchestrator.metrics import AccuracyMatrix, by_client, worst_decile
from orchestrator.store.base import RunStatus
from orchestrator.summary import compare, run_listing, show
from tests.conftest import REPOSITORY
from tests.orchestrator.recorded_run import CLIENTS, REFUSED, ROUNDS_PER_TASK, TASKS, recorded_run

RUN, ROUNDS, EVENTS = recorded_run()
SHOWN = show(RUN, ROUNDS, EVENTS, report_path="/report.html")
DOCUMENTS = (
    (results.Show, SHOWN),
    (results.Listing, run_listing([RUN])),
    (results.Comparison, compare([SHOWN, SHOWN | {"config": {"seed": 4}}])),
)


def faults(kind: Any, value: object, path: str = "$") -> list[str]:
    """Where ``value`` is not of the annotated ``kind``, without one key more or less."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return []
    if typing.is_typeddict(kind):
        hints = typing.get_type_hints(kind)
        if not isinstance(value, dict) or hints.keys() != value.keys():
            return [f"{path}: keys {sorted(hints.keys() ^ set(value))}"]
        return [f for key, hint in hints.items() for f in faults(hint, value[key], f"{path}.{key}")]
    if origin in (types.UnionType, typing.Union):  # of a Literal and None it is the older one
        return [] if any(not faults(each, value) for each in arguments) else [f"{path}: {value!r}"]
    if origin is typing.Literal:
        return [] if value in arguments else [f"{path}: {value!r}"]
    if origin is list and isinstance(value, list):
        return [
            f for i, item in enumerate(value) for f in faults(arguments[0], item, f"{path}[{i}]")
        ]
    if origin is dict and isinstance(value, dict):
        return [
            f for key, item in value.items() for f in faults(arguments[1], item, f"{path}.{key}")
        ]
    plain = {float: (int, float)}.get(kind, kind)
    right = (
        origin is None and isinstance(value, plain) and isinstance(value, bool) == (kind is bool)
    )
    return [] if right else [f"{path}: {value!r} is no {kind}"]


@pytest.mark.parametrize(("kind", "document"), DOCUMENTS, ids=lambda x: getattr(x, "__name__", ""))
def test_documents_have_exactly_the_typed_shape_and_are_strict_json(kind, document):
    assert faults(kind, document) == []
    assert json.loads(json.dumps(document, allow_nan=False)) == document


def test_a_wrong_shape_would_be_seen():
    assert faults(results.Show, SHOWN | {"acc": "high"}) == ["$.acc: 'high'"]
    assert faults(results.Show, SHOWN | {"extra": 1}) == ["$: keys ['extra']"]


def test_every_key_is_documented():
    text = (REPOSITORY / "docs" / "json.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(\w+)`", text))
    kinds = [each for each in vars(results).values() if typing.is_typeddict(each)]
    assert len(kinds) > 10
    assert {key for kind in kinds for key in typing.get_type_hints(kind)} - named == set()


def test_the_matrix_pools_examples_and_starts_with_the_untrained_model():
    scores = [score for record in ROUNDS for score in record.scores]
    cell = [s for s in scores if (s.after_task, s.task_index) == (2, 1)]
    pooled = sum(s.num_correct for s in cell) / sum(s.num_examples for s in cell)
    assert len(SHOWN["accuracy_matrix"]) == len(TASKS) + 1
    assert SHOWN["accuracy_matrix"][3][1] == pytest.approx(pooled)
    assert max(SHOWN["accuracy_matrix"][0]) < 0.2
    assert SHOWN["acc"] == pytest.approx(np.mean(SHOWN["accuracy_matrix"][-1]))
    assert SHOWN["average_accuracy"][-1] == pytest.approx(SHOWN["acc"])


def test_bytes_are_the_sums_of_the_replies_at_every_level():
    replies = [reply for record in ROUNDS for reply in record.replies]
    for key in ("bytes_up", "bytes_down"):
        total = sum(getattr(reply, key) for reply in replies)
        assert SHOWN[key] == total
        assert sum(record[key] for record in SHOWN["rounds"]) == total
        assert sum(client[key] for client in SHOWN["clients"]) == total


def test_a_round_counts_its_clients_and_their_seconds():
    record = SHOWN["rounds"][3]
    assert (record["clients_ok"], record["clients_failed"]) == (9, 1)
    compute = sum(reply.seconds.get("compute", 0) for reply in ROUNDS[3].replies)
    assert record["client_seconds"]["compute"] == pytest.approx(compute)
    assert record["truncation_max"] == pytest.approx(0.016)
    assert SHOWN["rounds"][0]["truncation_max"] is None
    weights = [reply.num_examples for reply in ROUNDS[3].replies]
    losses = [reply.metrics.get("loss", 0.0) for reply in ROUNDS[3].replies]
    assert record["loss"] == pytest.approx(np.average(losses, weights=weights))


def test_clients_are_judged_on_their_own_examples():
    own = [s for r in ROUNDS for s in r.scores if s.client_id == CLIENTS[4]]
    client = SHOWN["clients"][4]
    assert client["client_id"] == CLIENTS[4]
    assert client["acc"] == pytest.approx(AccuracyMatrix.of(own, len(TASKS)).acc())
    assert client["rounds"] == ROUNDS_PER_TASK * len(TASKS)
    accs = sorted(each["acc"] for each in SHOWN["clients"])
    spread = {"mean": pytest.approx(np.mean(accs)), "worst_decile": pytest.approx(accs[0])}
    assert SHOWN["acc_over_clients"] == spread


def test_failures_are_counted_per_client_with_their_reasons():
    failed = {client for _, client in REFUSED}
    for client in SHOWN["clients"]:
        assert bool(client["failures"]) == (client["client_id"] in failed)
    assert SHOWN["clients"][2]["failure_reasons"] == ["deadline"]
    assert SHOWN["clients"][2]["failures"] == 2


def test_a_client_that_missed_the_last_evaluation_is_not_judged_on_an_earlier_one():
    scores = [s for r in ROUNDS for s in r.scores]
    missed = [s for s in scores if (s.client_id, s.after_task) != (CLIENTS[0], len(TASKS) - 1)]
    matrices = by_client(missed, len(TASKS))
    assert np.isnan(matrices[CLIENTS[0]].acc())
    assert np.isfinite(matrices[CLIENTS[1]].acc())


def test_a_metric_is_not_given_over_fewer_tasks_than_it_claims():
    """Joint training leaves one diagonal cell, and that alone is no learning accuracy."""
    nothing = [np.nan, np.nan]
    joint = AccuracyMatrix(np.array([[0.1, 0.1], nothing, [0.8, 0.9]]))
    assert joint.acc() == pytest.approx(0.85)
    absent = (joint.learning_accuracy(), joint.aia(), joint.bwt(), joint.forgetting())
    assert np.isnan(absent).all()


def test_a_task_nobody_can_score_is_left_out():
    """A client without test examples of task 1 still has an ACC, over the other two."""
    values = np.array([[0.1, np.nan, 0.1], [0.9, np.nan, 0], [0.8, np.nan, 0], [0.6, np.nan, 0.7]])
    matrix = AccuracyMatrix(values)
    assert matrix.acc() == pytest.approx(0.65)
    assert matrix.bwt() == pytest.approx(-0.3)
    assert matrix.forgetting() == pytest.approx(0.3)
    assert matrix.aia() == pytest.approx(np.mean([0.9, 0.8, 0.65]))


def test_renaming_clients_changes_no_global_value():
    other = dict(zip(CLIENTS, reversed(CLIENTS), strict=True))
    scores = [
        dataclasses.replace(s, client_id=other[s.client_id]) for r in ROUNDS for s in r.scores
    ]
    found = AccuracyMatrix.of(reversed(scores), len(TASKS)).values
    np.testing.assert_array_equal(found, np.array(SHOWN["accuracy_matrix"]))


def test_the_worst_tenth_is_at_least_one_client():
    assert worst_decile([0.5, np.nan, 0.2]) == pytest.approx(0.2)
    assert worst_decile([float(i) for i in range(30)]) == pytest.approx(1.0)
    assert np.isnan(worst_decile([]))


def test_a_run_that_has_only_been_submitted_can_be_shown():
    run = dataclasses.replace(
        RUN, status=RunStatus.CREATED, task_names=(), started_at=None, ended_at=None, progress={}
    )
    shown = show(run, [], [])
    assert faults(results.Show, shown) == []
    assert faults(results.Listing, run_listing([run])) == []
    assert (shown["acc"], shown["duration_seconds"], shown["accuracy_matrix"]) == (None, None, [[]])


def test_a_listing_keeps_the_order_and_takes_metrics_from_the_progress():
    older = dataclasses.replace(RUN, run_id="older", progress={"acc": 0.25})
    listed = run_listing([RUN, older])["runs"]
    assert [(run["run_id"], run["acc"], run["bwt"]) for run in listed] == [
        (RUN.run_id, 0.5, None),
        ("older", 0.25, None),
    ]


def test_a_comparison_lists_the_settings_that_differ_and_no_others():
    other = show(*recorded_run(name="forgetful", kept=0.6))
    found = compare([SHOWN, other])
    assert {row["key"]: row["values"] for row in found["config"]} == {
        "name": ["intents", "forgetful"],
        "learning.methods": [[{"name": "er"}], [{"name": "finetune"}]],
    }
    accs = next(row["values"] for row in found["results"] if row["metric"] == "acc")
    assert accs == [SHOWN["acc"], other["acc"]]
    assert accs[0] > accs[1] + 0.2
