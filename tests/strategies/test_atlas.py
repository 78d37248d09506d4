"""Learnt coefficients of task vectors: the solver on quadratics, the merger on linear models."""

from __future__ import annotations

import numpy as np
import pytest

from strategies.lora import is_merged, merged_keys, num_merged
from strategies.merging.atlas import Atlas, _scaled, coefficients_of
from strategies.merging.coefficients import (
    CURVATURE,
    LEAST,
    MOST,
    SUMS,
    Look,
    Search,
    least,
    look_of,
)
from strategies.merging.task_vectors import TaskVectors, vectors_in
from strategies.types import ClientId, ParamKey
from tests.strategies.aggregation_rounds import D_IN, GROUP, OTHER, product
from tests.strategies.test_merging import NORM, WEIGHT, a_state, view

HERE, THERE = sorted([GROUP, OTHER])


class Quadratic:
    """A mean loss ½ (c − c*)ᵀ H (c − c*) + 1 of ``size`` coefficients, split over two clients."""

    def __init__(self, size: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        root = rng.normal(size=(size + 3, size))
        self.curvature, self.least = root.T @ root, rng.uniform(0.3, 1.5, size)

    def loss(self, c) -> float:
        return float((c - self.least) @ self.curvature @ (c - self.least)) / 2 + 1

    def evidence(self, c, columns: dict[str, int]):
        """As two clients send it, who stand for 3 and 7 examples and see halves of the gradient."""
        gradient = c * (self.curvature @ (c - self.least))
        curvature = np.outer(c, c) * self.curvature
        found = {}
        for client, weight, part in (("a", 3.0, 0.2), ("b", 7.0, 0.8)):
            rows = [
                np.full(len(c), part * 10 * self.loss(c)),
                np.full(len(c), weight),
                part * 10 * gradient,
                *(part * 10 * curvature),
            ]
            pieces = np.split(np.array(rows), np.cumsum(list(columns.values()))[:-1], axis=1)
            found[ClientId(client)] = {
                ParamKey(group, CURVATURE): piece.astype(np.float32)
                for group, piece in zip(columns, pieces, strict=True)
            }
        return found


def test_a_look_is_the_mean_over_all_clients_in_terms_of_the_coefficients():
    oracle, c = Quadratic(5), np.array([0.5, 0.2, 0.7, 1.0, 0.5])
    look = look_of(oracle.evidence(c, {HERE: 2, THERE: 3}), c)
    assert look.loss == pytest.approx(oracle.loss(c), rel=1e-5)
    np.testing.assert_allclose(look.gradient, oracle.curvature @ (c - oracle.least), rtol=1e-4)
    np.testing.assert_allclose(look.curvature, oracle.curvature, rtol=1e-4, atol=1e-5)


def test_nobody_who_looks_finds_nothing():
    assert look_of({}, np.ones(2)) is None
    other = {ClientId("a"): {ParamKey(HERE, "drift"): np.array(1.0)}}
    assert look_of(other, np.ones(2)) is None
    empty = {ClientId("a"): {ParamKey(HERE, CURVATURE): np.zeros((SUMS + 1, 1), np.float32)}}
    assert look_of(empty, np.ones(1)) is None


def test_a_newton_step_ends_at_the_least_point_of_a_quadratic():
    oracle, c = Quadratic(6), np.full(6, 0.5)
    look = look_of(oracle.evidence(c, {HERE: 6}), c)
    np.testing.assert_allclose(least(look, 1e-9), oracle.least, atol=1e-3)
    damped = least(look, 10.0)
    assert oracle.loss(damped) < oracle.loss(c)
    assert np.linalg.norm(damped - c) < np.linalg.norm(oracle.least - c)


def test_coefficients_stay_in_range_and_flat_losses_move_none():
    c, eye = np.full(2, 0.5), np.eye(2)
    far = Look(c, np.array(1.0), np.array([-100.0, 100.0]), eye)
    np.testing.assert_array_equal(least(far, 0.1), [MOST, LEAST])
    flat = Look(c, np.array(1.0), np.zeros(2), np.zeros((2, 2)))
    np.testing.assert_array_equal(least(flat, 0.1), c)


def test_a_step_that_makes_it_worse_is_taken_back_and_shortened():
    start = np.array([0.5])
    first = Search.starting(start, 0.1).after(
        Look(start, np.array(1.0), np.array([-1.0]), np.array([[1.0]]))
    )
    assert first.trial == pytest.approx(0.5 + 1 / 1.1)
    missed = first.after(Look(first.trial, np.array(2.0), np.array([9.0]), np.array([[9.0]])))
    assert missed.trial == pytest.approx(0.5 + 1 / 2)  # from the same point, damping 1
    np.testing.assert_array_equal(missed.ended(), start)
    unseen = first.after(None)
    np.testing.assert_array_equal(unseen.ended(), start)
    np.testing.assert_array_equal(Search.starting(start, 0.1).after(None).ended(), start)


def tasks_of(merger, count: int):
    """What a merger makes of ``count`` tasks that are learnt one after the other."""
    state, merged = {}, None
    for task in range(count):
        merged = merger.task_end(view(task), a_state(task + 1), state)
        state = merged.state
    return merged


@pytest.mark.parametrize("coefficient", [0.3, 0.5])
def test_equal_coefficients_are_task_vectors_to_the_bit(coefficient):
    learnt = tasks_of(Atlas(coefficient=coefficient), 2)
    fixed = tasks_of(TaskVectors(coefficient=coefficient), 2)
    assert set(coefficients_of(learnt.state).values()) == {coefficient}
    unanswered = learnt
    for _ in range(3):
        unanswered = Atlas(coefficient=coefficient).refine(
            view(1), unanswered.tensors, unanswered.state
        )
    for found in (learnt, unanswered):
        assert found.tensors.keys() == fixed.tensors.keys()
        for key, value in fixed.tensors.items():
            np.testing.assert_array_equal(found.tensors[key], value)
    assert {name for name in unanswered.state if name.startswith("task-")} == set(fixed.state)


def test_a_coefficient_of_one_gives_its_task_and_none_the_base():
    """Pairs are ordered by group, then task; the rest of the state is not theirs to change."""
    merged, chosen = tasks_of(Atlas(), 3), np.zeros(6)
    bank = vectors_in(merged.state)
    base = _scaled(merged.tensors, bank, chosen)
    assert not product(base, GROUP).any()
    assert not product(base, OTHER).any()
    chosen[3 * [HERE, THERE].index(GROUP) + 1] = 1.0
    second = _scaled(merged.tensors, bank, chosen)
    np.testing.assert_allclose(product(second, GROUP), product(a_state(2), GROUP), atol=1e-6)
    assert not product(second, OTHER).any()
    np.testing.assert_array_equal(second[WEIGHT], merged.tensors[WEIGHT])
    half = _scaled(merged.tensors, bank, chosen / 2)
    mean = (product(base, GROUP) + product(second, GROUP)) / 2  # linear in the coefficients
    np.testing.assert_allclose(product(half, GROUP), mean, atol=1e-6)


def test_pairs_stay_apart_when_there_are_more_than_a_matrix_needs():
    merged = tasks_of(Atlas(), 4)
    assert num_merged(merged.tensors, GROUP) == 4
    ranks = sum(merged.tensors[merged_keys(GROUP, i)[0]].shape[0] for i in range(4))
    assert ranks > min(product(merged.tensors).shape)
    expected = product(tasks_of(TaskVectors(), 4).tensors)
    np.testing.assert_allclose(product(merged.tensors), expected, atol=1e-4)


def test_two_tasks_that_interfere_get_coefficients_that_serve_both():
    """A linear model fits both tasks' outputs on a memory of 30 inputs by least squares."""
    merger, rng = Atlas(damping=1e-6), np.random.default_rng(0)
    merged = tasks_of(merger, 2)
    vectors = {
        (task, group): product(a_state(task + 1), group)
        for group in (HERE, THERE)
        for task in (0, 1)
    }
    inputs = {group: rng.normal(size=(D_IN, 30)) for group in (HERE, THERE)}
    truth = {(0, HERE): 0.9, (1, HERE): 0.2, (0, THERE): 0.4, (1, THERE): 1.3}
    target = {
        g: sum(truth[t, g] * vectors[t, g] @ inputs[g] for t in (0, 1)) for g in (HERE, THERE)
    }

    def loss(tensors) -> float:
        return sum(float(np.square(product(tensors, g) @ inputs[g] - target[g]).sum()) / 2
                   for g in (HERE, THERE)) / 30  # fmt: skip

    uniform = loss(merged.tensors)
    for _ in range(merger.probes):
        evidence = {ClientId("a"): answered(merged, vectors, inputs, target, loss)}
        merged = merger.refine(view(1, evidence=evidence), merged.tensors, merged.state)
    assert loss(merged.tensors) < 1e-6 * uniform
    for pair, c in coefficients_of(merged.state).items():
        assert c == pytest.approx(truth[pair], abs=1e-3)
    np.testing.assert_array_equal(merged.tensors[WEIGHT], a_state(2)[WEIGHT])
    norms = 0.5 * (a_state(1)[NORM] + a_state(2)[NORM])
    np.testing.assert_allclose(merged.tensors[NORM], norms, rtol=1e-5)


def answered(merged, vectors, inputs, target, loss):
    """What a client finds: 30 examples, squared error, so curvature is what it is."""
    names = sorted(vectors, key=lambda pair: (pair[1], pair[0]))
    c = coefficients_of(merged.state)
    columns = np.zeros((len(names), 2 * target[HERE].size))
    miss = np.concatenate([(product(merged.tensors, g) @ inputs[g] - target[g]).ravel()
                           for g in (HERE, THERE)])  # fmt: skip
    for row, (task, group) in enumerate(names):
        part = (c[task, group] * vectors[task, group] @ inputs[group]).ravel()
        start = 0 if group == HERE else part.size
        columns[row, start : start + part.size] = part
    head = np.array([[30 * loss(merged.tensors)] * 4, [30.0] * 4])
    sums = np.vstack([head, columns @ miss, columns @ columns.T]).astype(np.float32)
    return {ParamKey(HERE, CURVATURE): sums[:, :2], ParamKey(THERE, CURVATURE): sums[:, 2:]}


def test_a_search_leaves_its_coefficients_behind_and_nothing_else():
    merger, merged = Atlas(), tasks_of(Atlas(), 2)
    for looks in range(3):
        c = np.array(list(coefficients_of(merged.state).values()))
        evidence = Quadratic(4).evidence(c, {HERE: 2, THERE: 2})
        merged = merger.refine(view(1, evidence=evidence), merged.tensors, merged.state)
        names = {name for name in merged.state if name.startswith("search|")}
        assert (len(names) > 1) == (looks < 2)
    assert names == {"search|trial"}
    start = merger.task_start(merged.tensors)
    assert not any(is_merged(key) for key in start)
    again = merger.task_end(view(2), a_state(9), merged.state)
    assert set(coefficients_of(again.state).values()) == {0.5}


def test_what_was_measured_best_stays_and_not_what_was_tried_last():
    merger, merged = Atlas(probes=2), tasks_of(Atlas(), 2)
    start = np.array(list(coefficients_of(merged.state).values()))
    evidence = Quadratic(4).evidence(start, {HERE: 2, THERE: 2})
    tried = merger.refine(view(1, evidence=evidence), merged.tensors, merged.state)
    assert product(tried.tensors) != pytest.approx(product(merged.tensors))
    worse = Quadratic(4).evidence(start - 0.3, {HERE: 2, THERE: 2})
    kept = merger.refine(view(1, evidence=worse), tried.tensors, tried.state)
    np.testing.assert_array_equal(list(coefficients_of(kept.state).values()), start)
    np.testing.assert_array_equal(product(kept.tensors), product(merged.tensors))
