"""Gradients that a purifier takes on its way: of a guidance, or of the latents that it optimises."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel


def inner_gradient(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The gradient at ``x`` (B, ...) of a row-wise ``function`` (B, ...) -> (B,).

    Works under ``no_grad``; the result is differentiable itself where gradients are on, in ``x`` and in everything that
    ``function`` captures, and has the same bits in both cases. Attention runs in its plain mathematical form, for the
    fused ones have no second derivative.
    """
    differentiable = torch.is_grad_enabled()
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        leaf = x if differentiable and x.requires_grad else x.detach().requires_grad_()
        return torch.autograd.grad(function(leaf).sum(), leaf, create_graph=differentiable)[0]
