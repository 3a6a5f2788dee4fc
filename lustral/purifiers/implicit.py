"""The derivative of a minimiser by the implicit function theorem, with conjugate gradients for the inverse Hessian."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Products = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(minimiser z, image x, vector w) -> (L_zz w, L_xz w): second derivatives of the loss L(z; x) times w."""


def through_minimiser(found: Tensor, x: Tensor, products: Products, num_steps: int, damping: float) -> Tensor:
    """``found`` (B, ...), the minimiser of a loss of images ``x`` (B, C, H, W), with the derivative
    -(L_zz + m)^-1 L_zx with respect to ``x``.

    The inverse is by ``num_steps`` steps of conjugate gradients a row. m is ``damping`` times the curvature along the
    arriving gradient. A row whose direction has no positive curvature stops there: the latents were no minimum.
    """
    return _Implicit.apply(found, x, products, num_steps, damping)  # type: ignore[return-value]


class _Implicit(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, found: Tensor, x: Tensor, products: Products, num_steps: int, damping: float) -> Tensor:
        ctx.save_for_backward(found, x)
        ctx.products, ctx.num_steps, ctx.damping = products, num_steps, damping
        return found.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, arriving: Tensor) -> tuple[Tensor | None, ...]:
        found, x = (saved.detach() for saved in ctx.saved_tensors)
        solution = _solve(lambda w: ctx.products(found, x, w)[0], arriving, ctx.num_steps, ctx.damping)
        return None, -ctx.products(found, x, solution)[1], None, None, None


def _solve(product: Callable[[Tensor], Tensor], right: Tensor, num_steps: int, damping: float) -> Tensor:
    """w with (A + m) w = right, nearly, row by row."""
    answer, residual, direction = torch.zeros_like(right), right, right
    size = _dot(residual, residual)
    damp = damping * (_dot(right, product(right)).abs() / size.clamp_min(1e-30))
    going = size > 0
    for _ in range(num_steps):
        image = product(direction) + _wide(damp, direction) * direction
        curvature = _dot(direction, image)
        going = going & (curvature > 0)
        length = _wide(torch.where(going, size / curvature.clamp_min(1e-30), 0.0), right)
        answer, residual = answer + length * direction, residual - length * image
        after = _dot(residual, residual)
        going = going & (after > 0)
        direction = residual + _wide(torch.where(going, after / size.clamp_min(1e-30), 0.0), right) * direction
        size = after
    return answer


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(1).sum(1)


def _wide(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.ndim - 1))
