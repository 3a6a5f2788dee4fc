"""Inner gradients: those that a purifier itself computes, for a guidance or to optimise latents."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel


def inner_gradient(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The gradient at ``x`` (B, ...) of a row-wise ``function`` (B, ...) -> (B,).

    It works under ``no_grad`` too. Where gradients are enabled, the result is itself differentiable, with respect to
    ``x`` and everything that ``function`` captures. Its bits are the same in both cases. Attention runs in its unfused
    math form, since fused attention has no second derivative.
    """
    differentiable = torch.is_grad_enabled()
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        leaf = x if differentiable and x.requires_grad else x.detach().requires_grad_()
        return torch.autograd.grad(function(leaf).sum(), leaf, create_graph=differentiable)[0]
