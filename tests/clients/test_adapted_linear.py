"""A linear module with a LoRA: what autograd makes of the formula, with fewer passes."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from clients.model.adapted_linear import adapted


def parts(*, bias=True, trained=("x", "a", "b")):
    torch.manual_seed(0)
    base = nn.Linear(6, 4, bias=bias).requires_grad_(requires_grad=False).double()
    tensors = {"x": torch.randn(2, 3, 6), "a": torch.randn(2, 6), "b": torch.randn(4, 2)}
    tensors = {k: v.double().requires_grad_(k in trained) for k, v in tensors.items()}
    return base, *tensors.values()


def by_formula(x, base, a, b, scale):
    return base(x) + scale * (x @ a.T) @ b.T


@pytest.mark.parametrize("trained", [("x", "a", "b"), ("a", "b"), ("x", "b"), ("x", "a"), ("x",)])
@pytest.mark.parametrize("bias", [True, False])
def test_values_and_gradients_are_those_of_the_formula(trained, bias):
    found = []
    for function in (adapted, by_formula):
        base, x, a, b = parts(bias=bias, trained=trained)
        y = function(x, base, a, b, 1.5)
        (y * torch.arange(4.0)).square().sum().backward()
        found.append((y, x.grad, a.grad, b.grad))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_its_gradient_is_that_of_finite_differences():
    base, x, a, b = parts()
    assert torch.autograd.gradcheck(lambda *each: adapted(each[0], base, *each[1:], 0.7), (x, a, b))


def test_a_base_that_trains_too_has_its_gradient():
    base, x, a, b = parts()
    base.requires_grad_(requires_grad=True)
    adapted(x, base, a, b, 1.0).sum().backward()
    torch.testing.assert_close(base.weight.grad, x.detach().sum(dim=(0, 1)).expand(4, 6))


def test_other_kinds_of_linear_modules_are_adapted_alike():
    _, x, a, b = parts()
    base = Conv1D(4, 6).requires_grad_(requires_grad=False).double()
    torch.testing.assert_close(adapted(x, base, a, b, 2.0), by_formula(x, base, a, b, 2.0))


def test_under_autocast_products_are_made_in_its_format():
    base, x, a, b = parts()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = adapted(x.float(), base.float(), a.float(), b.float(), 1.0)
        assert y.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("trained", "kept"), [("xab", {36, 12}), ("xb", {12}), ("xa", {36}), ("x", set())]
)
def test_what_is_kept_are_the_inputs_of_trained_factors_alone(trained, kept):
    base, x, a, b = parts(trained=tuple(trained))
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: sizes.append(tensor.numel()) or tensor, lambda tensor: tensor
    ):
        adapted(x, base, a, b, 1.0)
    assert sorted(sizes) == sorted([*kept, *(p.numel() for p in (base.weight, a, b))])
