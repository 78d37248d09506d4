"""Merging at a task's end: the laws of each method, against dense arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies.catalog import MERGERS
from strategies.lora import factors_of, keys_of, merged_keys, num_merged
from strategies.merging.between import start_of
from strategies.merging.folding import folded
from strategies.merging.lines import LiNeS
from strategies.merging.model_stock import ModelStock, step_length
from strategies.merging.task_vectors import TaskVectors, vector_of
from strategies.merging.wise_ft import WiseFt
from strategies.protocols import Contribution, MergeView, Moves
from strategies.types import HEAD, GroupName, GroupSpec, ParamKey
from tests.strategies.aggregation_rounds import (
    D_IN,
    D_OUT,
    GROUP,
    OTHER,
    RANK,
    best_of_rank,
    client,
    fresh,
    local_product,
    product,
    server,
)

WEIGHT, NORM = ParamKey(HEAD, "weight"), ParamKey(GroupName("norm"), "weight")


def linear(name: str, block: int | None) -> GroupSpec:
    return GroupSpec(
        name=GroupName(name), kind="linear", role="query", block=block,
        parts={"weight": (D_OUT, D_IN)}, linear=(D_OUT, D_IN),
    )  # fmt: skip


def dense(name: str, kind, shape: tuple[int, ...]) -> GroupSpec:
    return GroupSpec(
        name=GroupName(name), kind=kind, role=name, block=None, parts={"weight": shape}
    )


SPECS = (
    linear(GROUP, 0), linear(OTHER, 1), dense("norm", "norm", (5,)), dense(HEAD, "head", (4, 3)),
)  # fmt: skip


def view(task_index: int = 0, **known) -> MergeView:
    return MergeView(groups=known.pop("groups", SPECS), task_index=task_index, seed=3, **known)


def a_state(seed: int, rows: int = 4):
    """Two low-rank groups, a norm and a head whose first ``rows`` classes were met."""
    rng, tensors = np.random.default_rng(seed), server(seed, GROUP, OTHER)
    head = rng.normal(size=(4, 3)).astype(np.float32)
    head[rows:] = 0
    return tensors | {WEIGHT: head, NORM: rng.normal(size=5).astype(np.float32)}


def two_tasks(merger):
    """The state after a first task, what a second trained makes of it, and the merger's answer."""
    first = merger.task_end(view(0), a_state(1, rows=2), {})
    trained = a_state(2)
    return first.tensors, trained, merger.task_end(view(1), trained, first.state)


@pytest.mark.parametrize("name", sorted(MERGERS))
def test_nothing_given_is_changed_and_the_same_comes_out_twice(name):
    merger, given_state = MERGERS[name](), a_state(1)
    kept = {key: value.copy() for key, value in given_state.items()}
    results = [merger.task_end(view(), given_state, {}) for _ in range(2)]
    for key, value in kept.items():
        np.testing.assert_array_equal(given_state[key], value)
    assert results[0].tensors.keys() == results[1].tensors.keys()
    for key, value in results[0].tensors.items():
        assert value.dtype == np.float32
        np.testing.assert_array_equal(results[1].tensors[key], value)


@pytest.mark.parametrize("name", sorted(MERGERS))
def test_a_task_in_which_nothing_was_learnt_adds_nothing(name):
    untouched = {
        k: v for g in (GROUP, OTHER) for k, v in zip(keys_of(g), fresh(1).values(), strict=True)
    }
    merged = MERGERS[name]().task_end(view(), untouched, {}).tensors
    assert merged.keys() == untouched.keys()
    assert not any(merged[keys_of(group)[1]].any() for group in (GROUP, OTHER))


def test_wise_ft_gives_its_ends_exactly():
    before, after, merged = two_tasks(WiseFt(share=1.0))
    for key, value in after.items():
        np.testing.assert_array_equal(merged.tensors[key], value)
    start = WiseFt(share=1.0).task_end(view(0), before, {}).state
    stay = WiseFt(share=0.0).task_end(view(1), after, start)
    for key in (*keys_of(GROUP), *keys_of(OTHER), NORM):
        np.testing.assert_array_equal(stay.tensors[key], before[key])


@given(share=st.floats(0.05, 0.95))
def test_wise_ft_interpolates_products_not_factors(share):
    before, after, merged = two_tasks(WiseFt(share=share))
    for group in (GROUP, OTHER):
        target = (1 - share) * product(before, group) + share * product(after, group)
        best = best_of_rank(target, RANK)
        np.testing.assert_allclose(product(merged.tensors, group), best, atol=1e-4)
        error = np.linalg.norm(target - best) / np.linalg.norm(target)
        assert merged.truncation[group] == pytest.approx(error, abs=1e-5)
    expected = (1 - share) * before[NORM] + share * after[NORM]
    np.testing.assert_allclose(merged.tensors[NORM], expected, atol=1e-6)


def test_what_wise_ft_cuts_is_offered_again():
    merger = WiseFt()
    before, after, merged = two_tasks(merger)
    again = merger.task_end(view(2), merged.tensors, merged.state)
    target = (product(before) + product(after)) / 2
    np.testing.assert_allclose(product(again.tensors), product(merged.tensors), atol=1e-5)
    moved = dict(merged.tensors) | {keys_of(GROUP)[1]: np.zeros((D_OUT, RANK), np.float32)}
    offered = merger.task_end(view(2), moved, merged.state)
    rest = target - product(merged.tensors)
    wanted = best_of_rank(product(merged.tensors) / 2 + rest, RANK)
    np.testing.assert_allclose(product(offered.tensors), wanted, atol=1e-4)


def test_outputs_of_a_linear_model_interpolate_where_nothing_is_cut():
    first, second = fresh(1, 2), fresh(1, 2)  # a common A: the sum has rank 2
    rng = np.random.default_rng(0)
    for tensors in (first, second):
        tensors[keys_of(GROUP)[1]] = rng.normal(size=(D_OUT, 2)).astype(np.float32)
    keep = WiseFt(share=1.0).task_end(view(0), first, {})
    merged = WiseFt(share=0.3).task_end(view(1), second, keep.state)
    x = rng.normal(size=(D_IN, 9))
    expected = 0.7 * product(first) @ x + 0.3 * product(second) @ x
    np.testing.assert_allclose(product(merged.tensors) @ x, expected, atol=1e-5)


def test_head_rows_of_new_classes_stay_as_trained():
    before, after, merged = two_tasks(WiseFt(share=0.25))
    np.testing.assert_array_equal(before[WEIGHT][:2], a_state(1)[WEIGHT][:2])  # all new then
    np.testing.assert_array_equal(merged.tensors[WEIGHT][2:], after[WEIGHT][2:])
    old = 0.75 * before[WEIGHT][:2] + 0.25 * after[WEIGHT][:2]
    np.testing.assert_allclose(merged.tensors[WEIGHT][:2], old, rtol=1e-5)


def test_the_first_task_is_taken_towards_the_base():
    state = a_state(1)
    merged = WiseFt(share=0.5).task_end(view(0), state, {})
    np.testing.assert_allclose(product(merged.tensors), product(state) / 2, atol=1e-5)
    np.testing.assert_allclose(merged.tensors[NORM], state[NORM] / 2)
    assert not merged.truncation
    assert start_of(merged.state).keys() == state.keys()


def test_lines_with_one_and_zero_is_the_identity():
    before, after, merged = two_tasks(LiNeS(alpha=1.0, beta=0.0))
    np.testing.assert_array_equal(before[NORM], a_state(1)[NORM])
    for key, value in after.items():
        np.testing.assert_array_equal(merged.tensors[key], value)


def test_lines_counts_blocks_by_number_and_leaves_the_head():
    specs = tuple(linear(f"layer.{index}.query", index) for index in range(12))
    specs += (dense("embedding", "embedding", (5,)), dense(HEAD, "head", (4, 3)))
    factors = LiNeS(alpha=0.2, beta=0.7).factors(specs)
    assert factors[GroupName("layer.0.query")] == pytest.approx(0.2)
    assert factors[GroupName("layer.11.query")] == pytest.approx(0.9)
    assert factors[GroupName("layer.1.query")] == pytest.approx(0.2 + 0.7 / 11)
    assert factors[GroupName("embedding")] == pytest.approx(0.2)
    assert HEAD not in factors
    only = LiNeS(alpha=0.2, beta=0.7).factors((linear("layer.0.query", 0),))
    assert only == {GroupName("layer.0.query"): pytest.approx(0.9)}


def test_lines_scales_the_tasks_own_change_alone():
    before, after, merged = two_tasks(LiNeS(alpha=0.2, beta=0.7))
    for group, factor in ((GROUP, 0.2), (OTHER, 0.9)):
        start = product(before, group)
        target = start + factor * (product(after, group) - start)
        wanted = best_of_rank(target, RANK)
        np.testing.assert_allclose(product(merged.tensors, group), wanted, atol=1e-4)
    np.testing.assert_array_equal(merged.tensors[WEIGHT], after[WEIGHT])
    expected = before[NORM] + 0.2 * (after[NORM] - before[NORM])
    np.testing.assert_allclose(merged.tensors[NORM], expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("deltas", "expected"),
    [
        ([[1.0, 2.0, 3.0]] * 4, 1.0),
        (np.eye(3).tolist(), 0.0),
        ([[1.0, 2.0]], 1.0),
        ([[0.0, 0.0]] * 3, 1.0),
        ([[1.0, 0.0], [-1.0, 0.1]], 0.0),
        ([[1.0, 0.0], [-1.0, 0.0]], 0.0),
        ([[1.0, 0.0], [0.6, 0.8]], 2 * 0.6 / 1.6),
        (np.linalg.cholesky(np.full((3, 3), 0.4) + 0.6 * np.eye(3)).tolist(), 2 / 3),
    ],
    ids=["identical", "orthogonal", "one", "still", "opposed", "opposite", "two", "three"],
)
def test_model_stocks_step(deltas, expected):
    d = np.array(deltas)
    moves = Moves(count=len(d), of_sum=float(np.square(d.sum(0)).sum()), sum_of=float((d**2).sum()))
    t = step_length(moves)
    assert t == pytest.approx(expected, abs=1e-9)
    if 0 < t < 1:  # the centre: as far along every client's move as the others are
        inner = d @ (t * d.mean(axis=0))
        np.testing.assert_allclose(inner, np.full(len(d), (d @ d.T)[0, 1]), atol=1e-9)


@given(seed=st.integers(0, 1000), count=st.integers(2, 6), shared=st.floats(0, 2))
def test_model_stock_knows_the_mean_cosine_of_moves_of_one_length(seed, count, shared):
    """From sums alone what eq. 4 takes from the pairs."""
    rng = np.random.default_rng(seed)
    d = shared * rng.normal(size=8) + rng.normal(size=(count, 8))
    d *= 3.0 / np.linalg.norm(d, axis=1, keepdims=True)
    cosine = (d @ d.T / 9)[np.triu_indices(count, 1)].mean()
    moves = Moves(count=count, of_sum=float(np.square(d.sum(0)).sum()), sum_of=float((d**2).sum()))
    expected = count * cosine / ((count - 1) * cosine + 1) if cosine > 0 else 0.0
    assert step_length(moves) == pytest.approx(expected, abs=1e-9)


def test_model_stock_measures_moves_of_products_whatever_the_rank():
    state, clients = server(1), [client(0, 4), client(1, 6), client(2, 2)]
    tally = ModelStock().tally(state)
    for contribution in clients:
        tally.add(contribution)
    moves = tally.moves()[GROUP]
    sent = [
        product(dict(zip(keys_of(GROUP), factors_of(state, GROUP).prefix(rank), strict=True)))
        for rank in (4, 6, 2)
    ]
    found = [local_product(state, c) - s for c, s in zip(clients, sent, strict=True)]
    assert moves.count == 3
    assert moves.of_sum == pytest.approx(np.square(sum(found)).sum(), rel=1e-6)
    assert moves.sum_of == pytest.approx(sum(np.square(f).sum() for f in found), rel=1e-6)


def test_model_stock_counts_dense_groups_and_leaves_rows_that_count_apart():
    norm = NORM.group
    deltas = [np.arange(5, dtype=np.float32), np.ones(5, dtype=np.float32)]
    tally = ModelStock().tally({})
    for index, delta in enumerate(deltas):
        weight = {norm: np.array(2.0), HEAD: np.array([1.0, 0.0, 2.0, 1.0])}
        moved = {NORM: delta, WEIGHT: np.ones((4, 3), np.float32)}
        tally.add(Contribution(client_id=str(index), delta=moved, weight=weight))
    assert tally.moves() == {
        norm: Moves(count=2, of_sum=float(sum(deltas) @ sum(deltas)), sum_of=35.0)
    }


def test_model_stock_damps_the_rounds_step():
    before, after = a_state(1), a_state(2)
    moves = {
        GROUP: Moves(count=2, of_sum=3.2, sum_of=2.0),
        NORM.group: Moves(count=2, of_sum=2.0, sum_of=2.0),
    }
    merged = ModelStock().after_round(view(moves=moves), before, after, {})
    target = 0.25 * product(before) + 0.75 * product(after)  # cos 0.6
    np.testing.assert_allclose(product(merged.tensors), best_of_rank(target, RANK), atol=1e-4)
    np.testing.assert_array_equal(merged.tensors[NORM], before[NORM])  # cos 0
    for key in (WEIGHT, *keys_of(OTHER)):
        np.testing.assert_array_equal(merged.tensors[key], after[key])


@given(seed=st.integers(0, 1000))
def test_folding_leaves_the_model_and_starts_afresh(seed):
    state = server(seed, GROUP, OTHER)
    after = folded(view(), state)
    for group in (GROUP, OTHER):
        np.testing.assert_allclose(product(after, group), product(state, group), atol=1e-5)
        assert num_merged(after, group) == 1
        key_a, key_b = keys_of(group)
        assert not after[key_b].any()
        assert np.abs(after[key_a]).max() <= 1 / np.sqrt(D_IN)
        for old, key in zip(keys_of(group), merged_keys(group, 0), strict=True):
            np.testing.assert_array_equal(after[key], state[old])


def test_every_task_draws_another_a():
    drawn = [folded(view(task), server(1))[keys_of(GROUP)[0]] for task in (0, 1)]
    assert not np.allclose(*drawn)


def test_folding_over_many_tasks_stays_within_the_matrix():
    state, total = server(0), product(server(0))
    for task in range(6):
        after = folded(view(task), state)
        np.testing.assert_allclose(product(after), total, atol=1e-4)
        ranks = [after[merged_keys(GROUP, i)[0]].shape[0] for i in range(num_merged(after, GROUP))]
        assert sum(ranks) <= min(D_OUT, D_IN)
        trained = server(task + 1)
        state = after | trained
        total = total + product(trained)


@pytest.mark.parametrize("coefficient", [0.3, 1.0])
def test_task_vectors_add_up_from_the_base(coefficient):
    merger, state, memory = TaskVectors(coefficient=coefficient), a_state(1), {}
    total, norms = np.zeros((D_OUT, D_IN)), np.zeros(5)
    for task in range(3):
        total, norms = total + product(state), norms + state[NORM]
        merged = merger.task_end(view(task), state, memory)
        memory = merged.state
        np.testing.assert_allclose(product(merged.tensors), coefficient * total, atol=1e-4)
        np.testing.assert_allclose(merged.tensors[NORM], coefficient * norms, atol=1e-5)
        np.testing.assert_array_equal(merged.tensors[WEIGHT], state[WEIGHT])
        start = merger.task_start(merged.tensors)
        assert not product(start).any()
        assert NORM not in start
        np.testing.assert_array_equal(start[WEIGHT], state[WEIGHT])
        state = dict(start) | a_state(task + 2)


def test_a_task_vector_alone_is_the_tasks_own_model():
    first = a_state(1)
    merged = TaskVectors(coefficient=1.0).task_end(view(0), first, {})
    np.testing.assert_allclose(product(merged.tensors), product(first), atol=1e-6)
    np.testing.assert_array_equal(merged.tensors[NORM], first[NORM])
    vector = vector_of(merged.state, 0)
    assert vector.keys() == first.keys() - {WEIGHT}
    for key, value in vector.items():
        np.testing.assert_array_equal(value, first[key])


def test_averaging_coefficients_averages_the_models():
    models = []
    for coefficient in (0.2, 0.6, 0.4):
        merger, memory = TaskVectors(coefficient=coefficient), {}
        for task in range(2):
            merged = merger.task_end(view(task), a_state(task), memory)
            memory = merged.state
        models.append(product(merged.tensors))
    np.testing.assert_allclose((models[0] + models[1]) / 2, models[2], atol=1e-5)
