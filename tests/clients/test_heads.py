"""Heads of our own: what they compute, and that a seed makes them the same everywhere."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from clients.model.heads import RandomFeaturesHead, SimplexHead, head_of, simplex


@pytest.mark.parametrize("count", [2, 3, 7, 150])
def test_simplex_corners_are_as_far_apart_as_can_be(count):
    corners = simplex(count).double()
    assert corners.shape == (count, count - 1)
    products = corners @ corners.T
    wanted = torch.full((count, count), -1 / (count - 1), dtype=torch.float64)
    wanted.fill_diagonal_(1.0)
    torch.testing.assert_close(products, wanted, atol=1e-6, rtol=0)
    torch.testing.assert_close(
        corners.sum(dim=0), torch.zeros(count - 1).double(), atol=1e-5, rtol=0
    )


def test_a_new_class_does_not_move_what_old_classes_are_compared_with():
    """Corners are fixed: training on one class moves the projection alone."""
    head, features = SimplexHead(6, 4), torch.randn(8, 6)
    before = head.corners.clone()
    functional.cross_entropy(head(features), torch.zeros(8, dtype=torch.long)).backward()
    assert head.weight.grad.abs().sum() > 0
    assert [name for name, _ in head.named_parameters()] == ["weight"]
    assert torch.equal(head.corners, before)


def test_random_features_are_those_of_the_formula():
    head, features = RandomFeaturesHead(6, 4, 10), torch.randn(8, 6)
    with torch.no_grad():
        head.weight.copy_(torch.randn(4, 10))
        by_hand = torch.stack(
            [head.weight @ torch.clamp(head.directions @ feature, min=0.0) for feature in features]
        )
        torch.testing.assert_close(head(features), by_hand)


def tensors_of(head):
    return {**dict(head.named_parameters()), **dict(head.named_buffers())}


@pytest.mark.parametrize("kind", ["simplex", "random-features"])
def test_the_seed_decides_what_is_drawn_not_what_was_drawn_before(kind):
    states = []
    for drawn_before in (0, 5):
        torch.manual_seed(3)
        torch.randn(drawn_before)
        states.append(tensors_of(head_of(kind, 6, 4, 10)))
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    torch.manual_seed(4)
    other = tensors_of(head_of(kind, 6, 4, 10))
    assert any(not torch.equal(states[0][name], other[name]) for name in other)


@pytest.mark.parametrize("kind", ["linear", "cosine", "random-features"])
def test_an_untrained_head_favours_no_class(kind):
    assert not head_of(kind, 6, 4, 10)(torch.randn(3, 6)).any()
