"""A linear module with a LoRA on it, as one operation with a backward pass of its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def adapted(x: Tensor, base: nn.Module, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """``base`` of x (…, d_in) plus scale · x Aᵀ Bᵀ, (…, d_out); A (r, d_in), B (d_out, r)."""
    autocast = torch.is_autocast_enabled(x.device.type)
    if isinstance(base, nn.Linear) and not autocast and not base.weight.requires_grad:
        found: Tensor = _Adapted.apply(x, base, a, b, scale)  # type: ignore[no-untyped-call]
        return found
    y = base(x)
    inner = x.reshape(-1, x.shape[-1]) @ a.T  # (n, r)
    return torch.addmm(y.reshape(-1, y.shape[-1]), inner, b.T, alpha=scale).view(y.shape)


class _Adapted(torch.autograd.Function):
    """x Wᵀ + b + s·(x Aᵀ) Bᵀ, with W and b frozen.

    What autograd would do takes a copy of the output, a sum over two gradients of the input, and
    products with the rank as their last dimension, which take four times as long as their
    transposes: for r = 8 that is more than LoRA's own arithmetic (docs/performance.md).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, base: nn.Linear, a: Tensor, b: Tensor, scale: float) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])  # (n, d_in)
        inner = a @ flat.T  # (r, n)
        y = nn.functional.linear(flat, base.weight, base.bias)  # (n, d_out)
        y.addmm_(inner.T, b.T, alpha=scale)
        _, _, of_a, of_b, _ = ctx.needs_input_grad  # a frozen factor's input is not kept
        ctx.save_for_backward(flat if of_a else None, inner if of_b else None, base.weight, a, b)
        ctx.scale, ctx.shape = scale, x.shape
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        flat, inner, weight, a, b = ctx.saved_tensors
        of_x, _, of_a, of_b, _ = ctx.needs_input_grad
        outer = gradient.reshape(-1, gradient.shape[-1])  # (n, d_out)
        grad_x = grad_a = grad_b = None
        if of_b:
            grad_b = (inner @ outer).mul_(ctx.scale).T
        if of_a or of_x:
            through = (b.T @ outer.T).mul_(ctx.scale)  # (r, n)
            grad_a = through @ flat if of_a else None
        if of_x:
            grad_x = (outer @ weight).addmm_(through.T, a).view(ctx.shape)
        return grad_x, None, grad_a, grad_b, None
