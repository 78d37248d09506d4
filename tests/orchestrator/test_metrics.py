"""The metrics against the sheet's worked example and their laws."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from orchestrator.metrics import METRICS, AccuracyMatrix, Flips, by_client, headline, worst_decile
from orchestrator.store.base import ScoreRecord
from tests.contract.test_run_store import a_round


def matrix_of(untrained, rows) -> AccuracyMatrix:
    return AccuracyMatrix(np.array([untrained, *rows], dtype=float))


def metrics_of(matrix) -> dict[str, float]:
    return {name: metric(matrix) for name, metric in METRICS.items()}


WORKED = np.array(
    [[0.10, 0.10, 0.10], [0.90, 0.20, 0.10], [0.70, 0.80, 0.30], [0.60, 0.75, 0.85]]
)  # row 0 is the untrained model
WORKED_METRICS = {
    "acc": 0.7333, "aia": 0.7944, "bwt": -0.175, "fwt": 0.15, "forgetting": 0.175,
    "learning_accuracy": 0.85,
}  # fmt: skip


def test_the_worked_example():
    """Sheet D0: ACC 0.7333, AIA 0.7944, BWT −0.175, F 0.175, FWT 0.15, LA 0.85."""
    assert metrics_of(AccuracyMatrix(WORKED)) == pytest.approx(WORKED_METRICS, abs=1e-4)


def test_the_worked_example_from_what_two_clients_send():
    """Of 20 examples per task client b holds 4, right as often as can be."""
    right = np.rint(20 * WORKED).astype(int)
    scores = [
        score(client, row - 1, task, own, size)
        for row, task in np.ndindex(4, 3)
        for client, own, size in (
            ("a", right[row, task] - min(right[row, task], 4), 16),
            ("b", min(right[row, task], 4), 4),
        )
    ]
    assert metrics_of(AccuracyMatrix.of(scores, 3)) == pytest.approx(WORKED_METRICS, abs=1e-4)
    shown = headline([a_round("run", 0, scores=tuple(scores))], 3)
    assert shown["accuracy"] == pytest.approx([0.60, 0.75, 0.85])
    assert {name: shown[name] for name in METRICS} == pytest.approx(WORKED_METRICS, abs=1e-4)


SQUARE = st.integers(2, 6).flatmap(
    lambda n: arrays(float, (n + 1, n), elements=st.floats(0, 1, width=32))
)


@given(SQUARE)
def test_acc_is_learning_accuracy_plus_transfer(values):
    matrix, count = AccuracyMatrix(values), values.shape[1]
    identity = matrix.learning_accuracy() + matrix.bwt() * (count - 1) / count
    assert matrix.acc() == pytest.approx(identity, abs=1e-9)


@given(SQUARE)
def test_forgetting_is_minus_bwt_when_scores_never_rise(values):
    falling = values.copy()
    count = values.shape[1]
    for j in range(count):
        falling[j + 1 :, j] = np.sort(values[j + 1 :, j])[::-1]
    matrix = AccuracyMatrix(falling)
    assert matrix.forgetting() == pytest.approx(-matrix.bwt(), abs=1e-9)


@given(SQUARE, st.data())
def test_a_cell_that_was_not_measured_is_no_zero_and_no_shorter_mean(values, data):
    """What needs it is NaN; what does not stays as it was."""
    count, whole = values.shape[1], metrics_of(AccuracyMatrix(values))
    task = data.draw(st.integers(0, count - 2))
    holed = values.copy()
    holed[task + 1, task] = np.nan
    found = metrics_of(AccuracyMatrix(holed))
    for name in ("aia", "bwt", "learning_accuracy"):
        assert np.isnan(found[name])
    assert (found["acc"], found["fwt"]) == (whole["acc"], whole["fwt"])


def test_the_last_row_is_not_in_the_maximum_of_forgetting():
    """Scores that rise to the end are forgotten by less than nothing, as BWT is above it."""
    matrix = matrix_of([0, 0], [[0.4, 0], [0.9, 0.6]])
    assert matrix.forgetting() == pytest.approx(-0.5)
    assert matrix.bwt() == pytest.approx(0.5)


def test_joint_training_has_a_last_row_only():
    nothing = [np.nan] * 2
    matrix = matrix_of([0.1, 0.1], [nothing, [0.8, 0.6]])
    assert matrix.acc() == pytest.approx(0.7)
    assert np.isnan(matrix.learning_accuracy())
    assert np.isnan(matrix.aia())
    assert np.isnan(matrix.forgetting())


def test_one_task_has_no_transfer():
    matrix = matrix_of([0.1], [[0.9]])
    assert matrix.acc() == 0.9
    assert all(np.isnan(v) for v in (matrix.bwt(), matrix.fwt(), matrix.forgetting()))


def test_a_run_under_way_is_judged_on_the_tasks_it_has_met():
    nothing = [np.nan] * 3
    matrix = matrix_of([0.1, 0.1, 0.1], [[0.9, 0.2, 0.1], [0.7, 0.8, 0.3], nothing])
    assert matrix.num_learnt == 2
    assert matrix.acc() == pytest.approx(0.75)
    assert matrix.forgetting() == pytest.approx(0.2)
    assert np.isnan(matrix_of([0.1] * 3, [nothing] * 3).acc())


def test_a_task_that_recovers_is_forgotten_against_its_best():
    matrix = matrix_of([0] * 3, [[0.5, 0, 0], [0.9, 0.6, 0], [0.7, 0.6, 0.6]])
    assert matrix.forgetting_per_task() == pytest.approx([0.2, 0.0])


def score(client, after, task, correct, examples, **changes):
    values = {
        "client_id": client, "after_task": after, "task_index": task, "num_examples": examples,
        "num_correct": correct, "loss_sum": 0.0,
    }  # fmt: skip
    return ScoreRecord(**(values | changes))


def test_scores_are_pooled_over_clients_in_any_order():
    scores = [
        score("a", -1, 0, 1, 4),
        score("a", 0, 0, 3, 4),
        score("b", 0, 0, 0, 1),
        score("a", 0, 0, 9, 9, mid_task=True),
    ]
    for order in (scores, scores[::-1]):
        values = AccuracyMatrix.of(order, 2).values
        assert values[0, 0] == 0.25
        assert values[1, 0] == 0.6
        assert np.isnan(values[:, 1]).all()


CELLS = st.lists(  # (client, row, task, correct, wrong)
    st.tuples(*(st.integers(0, most) for most in (4, 3, 2, 9, 9))), min_size=1, max_size=60
)


@given(CELLS, st.permutations(range(5)), st.randoms())
def test_who_the_clients_are_and_who_comes_first_changes_nothing(cells, names, rng):
    def scores_of(order, name):
        return [score(str(name[c]), r - 1, t, n, n + wrong) for c, r, t, n, wrong in order]

    shuffled = list(cells)
    rng.shuffle(shuffled)
    found = [
        (AccuracyMatrix.of(scores, 3), by_client(scores, 3))
        for scores in (scores_of(cells, range(5)), scores_of(shuffled, names))
    ]
    (whole, own), (other, others) = found
    np.testing.assert_array_equal(whole.values, other.values)
    np.testing.assert_equal(metrics_of(whole), metrics_of(other))
    for client, matrix in own.items():
        np.testing.assert_array_equal(matrix.values, others[str(names[int(client)])].values)
    spread = [worst_decile([each.acc() for each in known.values()]) for known in (own, others)]
    np.testing.assert_equal(*spread)


def test_flip_rates_pool_the_clients_that_could_compare():
    scores = [
        score("a", 1, 0, 5, 9, num_lost=3, num_gained=1, num_compared=8),
        score("b", 1, 0, 1, 2, num_lost=0, num_gained=1, num_compared=2),
        score("c", 1, 0, 1, 50),  # it missed the release
        score("a", 1, 1, 5, 9, num_lost=0, num_gained=5, num_compared=5),
        score("a", 1, 0, 5, 9, num_lost=9, num_compared=9, mid_task=True),
        score("a", 0, 0, 5, 9, num_lost=9, num_compared=9),
    ]
    old = Flips.of(scores, 1, [0])
    assert (old.nfr, old.pfr) == (0.3, 0.2)
    assert Flips.of(scores, 1, [0, 1]).pfr == pytest.approx(7 / 15)
    assert np.isnan([Flips.of(scores, 1, [2]).nfr, Flips.of(scores, 1, [2]).pfr]).all()
