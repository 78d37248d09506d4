"""FOT: what earlier tasks' inputs span is out of bounds for later updates."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies.lora import keys_of
from strategies.merging.fot import Fot, basis_of, extended
from strategies.types import ClientId, ParamKey
from tests.strategies.aggregation_rounds import D_IN, GROUP, product, server
from tests.strategies.test_merging import view

SKETCH = ParamKey(GROUP, "input-spectrum")


def sketch(inputs, components: int = 64):
    """What a client sends of inputs (n, d_in)."""
    _, values, vectors = np.linalg.svd(inputs, full_matrices=False)
    return (values[:components, None] * vectors[:components]).astype(np.float32)


def inputs_in(seed: int, dimensions: int, count: int = 40):
    """Inputs (count, d_in) in a random subspace."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, dimensions)) @ rng.normal(size=(dimensions, D_IN))


def after(task: int, *inputs, state=None, merger=None) -> tuple:
    evidence = {ClientId(str(i)): {SKETCH: sketch(x)} for i, x in enumerate(inputs)}
    known = view(task, evidence=evidence)
    merged = (merger or Fot(energy=1.0)).task_end(known, server(task), state or {})
    return merged.tensors, merged.state


def test_after_projection_old_inputs_give_old_outputs():
    old = inputs_in(1, 5)
    _, state = after(0, old[:20], old[20:])
    basis = basis_of(state, GROUP)
    assert basis.shape == (D_IN, 5)
    trained = server(7)
    merged = Fot().after_round(view(1), {}, trained, state)
    np.testing.assert_allclose(product(merged.tensors) @ basis, 0, atol=1e-5)
    np.testing.assert_allclose(product(merged.tensors) @ old.T, 0, atol=1e-4)
    u = basis.astype(float)
    np.testing.assert_allclose(
        product(merged.tensors), product(trained) @ (np.eye(D_IN) - u @ u.T), atol=1e-5
    )


def test_nothing_is_projected_before_the_first_tasks_end():
    trained = server(7)
    merged = Fot().after_round(view(0), {}, trained, {})
    for key, value in trained.items():
        np.testing.assert_array_equal(merged.tensors[key], value)


def test_the_fresh_a_is_outside_and_the_model_unchanged():
    tensors, state = after(0, inputs_in(1, 5))
    np.testing.assert_allclose(tensors[keys_of(GROUP)[0]] @ basis_of(state, GROUP), 0, atol=1e-6)
    np.testing.assert_allclose(product(tensors), product(server(0)), atol=1e-5)


@pytest.mark.parametrize("clients", [1, 4])
def test_sketches_together_span_what_the_clients_inputs_span(clients):
    parts = [inputs_in(index, 3) for index in range(clients)]
    _, state = after(0, *parts)
    u = basis_of(state, GROUP).astype(float)
    everything = np.vstack(parts)
    assert u.shape[1] == np.linalg.matrix_rank(everything) == 3 * clients
    rest = everything - everything @ u @ u.T
    assert np.linalg.norm(rest) <= 1e-5 * np.linalg.norm(everything)


@given(seed=st.integers(0, 1000), share=st.floats(0.3, 1.0))
def test_a_basis_grows_orthonormal_until_it_holds_its_share(seed, share):
    rng, basis = np.random.default_rng(seed), None
    for _ in range(3):
        stack = rng.normal(size=(9, 4)) @ rng.normal(size=(4, D_IN))
        before, basis = basis, extended(basis, stack, share)
        u = basis.astype(float)
        np.testing.assert_allclose(u.T @ u, np.eye(u.shape[1]), atol=1e-5)
        held = np.square(stack @ u).sum() / np.square(stack).sum()
        assert held >= share - 1e-5
        if before is None:
            continue
        np.testing.assert_allclose(u @ (u.T @ before), before, atol=1e-5)
        if u.shape[1] > before.shape[1]:  # one direction less would not do
            known = np.square(stack @ before.astype(float)).sum() / np.square(stack).sum()
            assert known < share
            rest = stack - stack @ before @ before.T
            values = np.linalg.svd(rest, compute_uv=False)
            count = u.shape[1] - before.shape[1]
            fewer = known + np.square(values[: count - 1]).sum() / np.square(stack).sum()
            assert fewer < share + 1e-5


def test_the_share_by_hand():
    """Energies 9, 4, 1 of 14: 0.6 takes one direction, 0.9 two, and then 1 the third."""
    stack = np.diag([3.0, 2.0, 1.0])
    one = extended(None, stack, 0.6)
    np.testing.assert_allclose(np.abs(one), [[1], [0], [0]], atol=1e-7)
    assert extended(None, stack, 0.9).shape == (3, 2)
    assert extended(one, stack, 0.6).shape == (3, 1)
    assert extended(one, stack, 0.9).shape == (3, 2)
    assert extended(one, stack, 1.0).shape == (3, 3)
    assert extended(one, np.zeros((2, 3)), 0.9).shape == (3, 1)


def test_the_share_grows_with_the_tasks():
    stack = np.zeros((4, D_IN))
    stack[:4, :4] = np.diag([3.0, 2.0, 1.0, 1.0])
    merger = Fot(energy=0.5, energy_increment=0.2)
    sizes = [basis_of(after(t, stack, merger=merger)[1], GROUP).shape[1] for t in (0, 1, 2, 9)]
    assert sizes == [1, 2, 3, 4]


def test_a_task_nobody_was_probed_after_leaves_the_basis():
    _, state = after(0, inputs_in(1, 5))
    merged = Fot().task_end(view(1), server(1), state)
    np.testing.assert_array_equal(basis_of(merged.state, GROUP), basis_of(state, GROUP))
