"""Intruder dimensions: the property tests of sheet A20 and a slow reference."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from orchestrator.intruders import count_intruders, inspected_groups
from strategies.intruders import num_intruders
from strategies.lora import Factors, keys_of, merged_keys
from strategies.types import GroupName, GroupSpec, ParamKey

SIZE = 64
SEEDS = st.integers(0, 10**6)


def unit(rng, size=SIZE):
    vector = rng.standard_normal(size)
    return vector / np.linalg.norm(vector)


def a_base(rng, shape=(SIZE, SIZE)):
    """A weight whose singular values fall, so that its directions are well defined."""
    u, _, v = np.linalg.svd(rng.standard_normal(shape), full_matrices=False)
    return (u * (2 * 0.9 ** np.arange(min(shape)))) @ v


def strange(rng, scale=1.0, shape=(SIZE, SIZE)):
    """scale · u vᵀ of random unit vectors, as factors."""
    return Factors(unit(rng, shape[1])[None, :], scale * unit(rng, shape[0])[:, None])


def reference(base, tuned, leading=10, threshold=0.5):
    """The definition, one cosine after the other."""
    known, found = np.linalg.svd(base)[0], np.linalg.svd(tuned)[0]
    count = 0
    for j in range(leading):
        cosines = [abs(float(known[:, i] @ found[:, j])) for i in range(len(base))]
        count += max(cosines) < threshold
    return count


@given(SEEDS)
def test_an_untouched_weight_has_none(seed):
    rng = np.random.default_rng(seed)
    nothing = Factors(rng.standard_normal((4, SIZE)), np.zeros((SIZE, 4)))
    assert num_intruders(a_base(rng), nothing, 2.0) == 0


@given(SEEDS)
def test_one_strong_direction_of_its_own_is_one(seed):
    rng = np.random.default_rng(seed)
    base, factors = a_base(rng), strange(rng)
    found = num_intruders(base, factors, 5.0)
    assert found == reference(base, base + 5.0 * factors.b @ factors.a)
    assume(np.abs(np.linalg.svd(base)[0].T @ factors.b).max() < 0.45)  # by chance it is like one
    assert found == 1


@given(SEEDS)
def test_a_direction_of_the_base_is_none_however_strong(seed):
    rng = np.random.default_rng(seed)
    base = a_base(rng)
    u, _, v = np.linalg.svd(base)
    assert num_intruders(base, Factors(v[3:4], u[:, 3:4]), 50.0) == 0


@given(SEEDS)
def test_signs_do_not_matter(seed):
    rng = np.random.default_rng(seed)
    base, factors = a_base(rng), strange(rng, 5.0)
    left, right = rng.choice([-1.0, 1.0], (2, SIZE))
    turned = Factors(-factors.a * right, -left[:, None] * factors.b)
    expected = num_intruders(base, factors, 1.0)
    assert num_intruders(left[:, None] * base * right, turned, 1.0) == expected
    assert num_intruders(-base, Factors(factors.a, -factors.b), 1.0) == expected


def test_every_direction_of_its_own_counts_up_to_ten():
    rng = np.random.default_rng(0)
    base = a_base(rng, (200, 16))  # there is much room beside its 16 directions
    q = np.linalg.qr(rng.standard_normal((200, 12)))[0]
    factors = Factors(np.linalg.qr(rng.standard_normal((16, 12)))[0].T, q)
    assert num_intruders(base, factors, 50.0) == 10
    assert num_intruders(base, factors.prefix(3), 50.0) == 3
    assert num_intruders(np.zeros((200, 16)), factors.prefix(3), 1.0) == 3
    assert num_intruders(np.zeros((200, 16)), Factors(factors.a, 0 * q), 1.0) == 0


def spec(name, linear, stored):
    return GroupSpec(
        name=GroupName(name), kind="linear", role=name, block=0, parts={"weight": stored},
        linear=linear,
    )  # fmt: skip


@pytest.mark.parametrize("turned", [False, True])
def test_a_state_is_the_sum_of_its_groups_however_its_weights_are_stored(turned):
    rng = np.random.default_rng(1)
    shapes = {"square": (SIZE, SIZE), "wide": (SIZE, 96), "frozen": (SIZE, 96)}
    specs = {
        GroupName(n): spec(n, shape, shape[::-1] if turned else shape)
        for n, shape in shapes.items()
    }
    bases = {n: a_base(rng, shape).astype(np.float32) for n, shape in shapes.items()}
    values = {ParamKey(GroupName(n), "weight"): b.T if turned else b for n, b in bases.items()}
    square, wide = strange(rng, 5.0), strange(rng, 5.0, shapes["wide"])
    merged = strange(rng, 5.0, shapes["wide"])
    tensors = dict(zip(keys_of(GroupName("square")), square, strict=True))
    tensors |= zip(keys_of(GroupName("wide")), wide, strict=True)
    tensors |= zip(merged_keys(GroupName("wide"), 0), merged, strict=True)
    assert inspected_groups(specs.values(), tensors) == ("square", "wide")
    assert count_intruders(specs, tensors, values, 1.0) == 3
