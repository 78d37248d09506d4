"""Heads solved from sums: exact for any partition and order, and honest about bad sums."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies.errors import WireError
from strategies.heads.analytic import (
    Analytic,
    best_ridge,
    penalty_of,
    ridge,
    trace_of_inverse,
)
from strategies.heads.moments import Moments, largest, packed, unpacked
from strategies.heads.prototype import Prototype
from strategies.protocols import HeadShape
from strategies.types import HEAD, ParamKey

COUNTS, SUMS, MOMENTS = (ParamKey(HEAD, n) for n in ("class-counts", "class-sums", "moments"))
NUM_CLASSES, WIDTH = 6, 20
SHAPE = HeadShape(num_classes=NUM_CLASSES, width=WIDTH)


def examples(seed=0, count=400):
    rng = np.random.default_rng(seed)
    labels = rng.integers(NUM_CLASSES, size=count)
    centres = rng.standard_normal((NUM_CLASSES, WIDTH))
    return np.maximum(centres[labels] + rng.standard_normal((count, WIDTH)), 0), labels


def evidence(features, labels):
    counts = np.bincount(labels, minlength=NUM_CLASSES).astype(np.float32)
    held = np.flatnonzero(counts)
    targets = (labels[:, None] == held).astype(np.float64)
    return {
        COUNTS: np.stack([counts, counts]),
        SUMS: (targets.T @ features).astype(np.float32),
        MOMENTS: packed([np.hstack([features, targets])], features.shape[1]),
    }


def solved(solver, parts):
    state = {}
    for features, labels in parts:
        state = solver.absorb(state, evidence(features, labels), SHAPE)
    return solver.solve(state)[0]


def parts_of(features, labels, cut, order):
    """Clients' examples by ``cut`` (n,), in ``order`` of clients."""
    return [(features[cut == k], labels[cut == k]) for k in order if (cut == k).any()]


@given(rows=st.integers(1, 30), width=st.integers(1, 12), classes=st.integers(1, 5))
def test_what_is_packed_has_the_moments_of_the_examples(rows, width, classes):
    rng = np.random.default_rng(rows)
    features, targets = rng.random((rows, width)), rng.random((rows, classes))
    values = packed([np.hstack([features, targets])], width)
    assert values.size <= largest(width, classes)
    if rows <= width:
        assert values.size <= rows * (width + classes)
    phi, y = unpacked(values, width, classes)
    np.testing.assert_allclose(phi.T @ phi, features.T @ features, atol=1e-4)
    np.testing.assert_allclose(phi.T @ y, features.T @ targets, atol=1e-4)


def test_pieces_pack_like_the_whole(monkeypatch):
    monkeypatch.setattr("strategies.heads.moments._PIECE", 16)
    features, labels = examples(count=100)
    targets = np.eye(NUM_CLASSES)[labels]
    stack = np.hstack([features, targets])
    whole = unpacked(packed([stack], WIDTH), WIDTH, NUM_CLASSES)
    cut = unpacked(packed(np.array_split(stack, 9), WIDTH), WIDTH, NUM_CLASSES)
    for (phi, y), (one, other) in [(cut, whole)]:
        np.testing.assert_allclose(phi.T @ phi, one.T @ one, rtol=1e-5)
        np.testing.assert_allclose(phi.T @ y, one.T @ other, rtol=1e-5)


@pytest.mark.parametrize("size", [0, 3, 10_000])
def test_moments_of_no_possible_length_are_refused(size):
    with pytest.raises(WireError, match="expected"):
        unpacked(np.zeros(size, np.float32), WIDTH, 2)


@pytest.mark.parametrize("solver", [Analytic(), Prototype()], ids=["analytic", "prototype"])
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 1, 0, 2)])
@pytest.mark.parametrize("cut", ["evenly", "by class", "one has nearly all"])
def test_partition_and_order_do_not_matter(solver, order, cut):
    features, labels = examples()
    clients = {
        "evenly": np.arange(len(labels)) % 4,
        "by class": labels % 4,
        "one has nearly all": np.minimum(np.arange(len(labels)), 3),
    }[cut]
    pooled = solved(solver, [(features, labels)])
    np.testing.assert_allclose(
        solved(solver, parts_of(features, labels, clients, order)), pooled, atol=1e-5
    )


@pytest.mark.parametrize("solver", [Analytic(), Prototype()], ids=["analytic", "prototype"])
def test_solving_after_every_task_changes_nothing_of_what_comes_out(solver):
    features, labels = examples()
    state = {}
    for part in parts_of(features, labels, labels // 2, (0, 1, 2)):
        rows, state = solver.solve(solver.absorb(state, evidence(*part), SHAPE))
    np.testing.assert_allclose(rows, solved(solver, [(features, labels)]), atol=1e-5)


def test_the_analytic_head_is_the_ridge_regression_of_the_pooled_data():
    features, labels = examples()
    targets = np.eye(NUM_CLASSES)[labels]
    rows = solved(Analytic(), parts_of(features, labels, labels % 3, (0, 1, 2)))
    total = Moments(features.T @ features, features.T @ targets)
    exponent, _ = best_ridge(total, np.full(2, len(labels)))
    penalty = penalty_of(total, exponent)
    wanted = np.linalg.solve(total.gram + penalty * np.eye(WIDTH), total.cross)
    np.testing.assert_allclose(rows, wanted.T, atol=1e-5)
    hits = (features @ rows.T).argmax(axis=1) == labels
    assert hits.mean() > 0.9


def test_cross_validation_is_that_of_the_hat_matrix():
    features, labels = examples(count=60)
    targets = np.eye(NUM_CLASSES)[labels]
    penalty = 2.5
    hat = features @ np.linalg.solve(features.T @ features + penalty * np.eye(WIDTH), features.T)
    residual = np.sum((targets - hat @ targets) ** 2)
    wanted = residual / 60 / (1 - np.trace(hat) / 60) ** 2
    total = Moments(features.T @ features, features.T @ targets)
    assert ridge(total, np.full(2, 60), penalty)[0] == pytest.approx(wanted, rel=1e-9)


def test_the_search_for_the_penalty_finds_the_best_of_all_from_anywhere():
    features, labels = examples(count=80)
    total = Moments(features.T @ features, features.T @ np.eye(NUM_CLASSES)[labels])
    errors = {k: ridge(total, np.full(2, 80), penalty_of(total, k))[0] for k in range(-16, 5)}
    for start in (-16, -4, 4):
        assert best_ridge(total, np.full(2, 80), start)[0] == min(errors, key=errors.__getitem__)


def test_rows_that_wait_are_folded_piece_by_piece(monkeypatch):
    features, labels = examples()
    parts = parts_of(features, labels, np.arange(len(labels)) % 9, range(9))
    whole = solved(Analytic(), parts)
    monkeypatch.setattr("strategies.heads.analytic._PIECE", 45)
    np.testing.assert_allclose(solved(Analytic(), parts), whole, atol=1e-6)


def test_the_trace_of_a_large_inverse_is_estimated_closely():
    features = np.random.default_rng(0).random((900, 600))
    gram = features.T @ features + 3.0 * np.eye(600)
    wanted = np.trace(np.linalg.inv(gram))
    assert trace_of_inverse(np.linalg.cholesky(gram)) == pytest.approx(wanted, rel=0.02)


def test_half_precision_changes_little():
    features, labels = examples()
    exact = solved(Analytic(), [(features, labels)])
    found = evidence(features, labels)
    found[MOMENTS] = found[MOMENTS].astype(np.float16)
    rough = Analytic().solve(Analytic().absorb({}, found, SHAPE))[0]
    assert np.abs(rough - exact).max() < 0.01 * np.abs(exact).max()


def test_old_prototypes_stay_when_new_classes_come():
    features, labels = examples()
    old = labels < 3
    before = solved(Prototype(), [(features[old], labels[old])])
    after = solved(Prototype(), parts_of(features, labels, old.astype(int), (1, 0)))
    np.testing.assert_array_equal(after[:3], before[:3])
    np.testing.assert_allclose(after[4], features[labels == 4].mean(axis=0), rtol=1e-5)


@pytest.mark.parametrize("solver", [Analytic(), Prototype()])
def test_sums_that_do_not_fit_their_counts_are_refused(solver):
    found = evidence(*examples())
    found[COUNTS] = np.array([[1, 0, 0, 0, 0, 0]] * 2, np.float32)
    with pytest.raises(WireError, match="expected"):
        solver.absorb({}, found, SHAPE)


def test_an_example_that_stands_for_three_weighs_three_and_counts_once():
    """Near as many examples as features, taking them for more would call overfitting cheap."""
    features, labels = examples(count=24)
    targets = np.eye(NUM_CLASSES)[labels]
    thrice = Moments(3 * features.T @ features, 3 * features.T @ targets)
    once = Moments(features.T @ features, features.T @ targets)
    penalty = 0.7
    error, weights = ridge(thrice, np.array([72, 24]), 3 * penalty)
    plain, wanted = ridge(once, np.array([24, 24]), penalty)
    np.testing.assert_allclose(weights, wanted)
    assert error == pytest.approx(3 * plain)
    assert best_ridge(thrice, np.array([72, 24]))[0] == best_ridge(once, np.array([24, 24]))[0]
