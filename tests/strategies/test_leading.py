"""The leading components against the whole decomposition."""

from __future__ import annotations

import numpy as np
import pytest

from strategies.lora import decompose, leading

SHAPES = [(96, 48), (48, 96), (64, 64)]


def a_product(d_out, d_in, rank, seed=0, decay=0.8):
    """Factors (rank, d_in) and (d_out, rank) that share most of their rows, as clients' do."""
    rng = np.random.default_rng(seed)
    start = rng.normal(size=(4, d_in))
    rows = [start + 1e-3 * rng.normal(size=start.shape) for _ in range(rank // 4)]
    return np.vstack(rows), rng.normal(size=(d_out, rank)) * decay ** np.arange(rank)


@pytest.mark.parametrize(("d_out", "d_in"), SHAPES)
def test_it_is_the_beginning_of_the_whole(d_out, d_in):
    a, b = a_product(d_out, d_in, 40)
    whole, found = decompose(a, b), leading(a, b, 6)
    assert found.u.shape == (d_out, 6)
    assert found.v.shape == (6, d_in)
    np.testing.assert_allclose(found.s, whole.s[:6], rtol=1e-10, atol=1e-14 * whole.s[0])
    best = (whole.u[:, :6] * whole.s[:6]) @ whole.v[:6]
    product = (found.u * found.s) @ found.v
    assert np.linalg.norm(product - best) < 1e-12 * whole.s[0]
    for index in (0, 3, 6):
        assert found.norm_from(index) == pytest.approx(
            whole.norm_from(index), rel=1e-6, abs=1e-7 * whole.s[0]
        )


@pytest.mark.parametrize(("d_out", "d_in"), SHAPES)
def test_directions_that_carry_nothing_are_orthonormal_all_the_same(d_out, d_in):
    a, b = a_product(d_out, d_in, 40)
    b[:, 2:] = 0
    found = leading(a, b, 6)
    np.testing.assert_allclose(found.u.T @ found.u, np.eye(6), atol=1e-12)
    np.testing.assert_allclose(found.v @ found.v.T, np.eye(6), atol=1e-12)
    assert found.s[2:].max() < 1e-12 * found.s[0]
    assert found.rest < 1e-7 * found.s[0]
    np.testing.assert_allclose((found.u * found.s) @ found.v, b @ a, atol=1e-12 * found.s[0])


def test_of_nothing_it_is_nothing():
    found = leading(np.zeros((40, 64)), np.zeros((64, 40)), 6)
    assert not found.s.any()
    assert found.rest == 0


def test_of_few_components_it_is_the_whole():
    a, b = a_product(64, 64, 12)
    for one, other in zip(leading(a, b, 6), decompose(a, b), strict=True):
        np.testing.assert_array_equal(one, other)
