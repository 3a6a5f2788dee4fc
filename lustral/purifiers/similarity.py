"""Structural similarity (Wang et al. 2004)."""

import torch
from torch import Tensor

WINDOW, SIGMA = 11, 1.5
C1, C2 = 0.01**2, 0.03**2


def ssim(x: Tensor, y: Tensor) -> Tensor:
    """(B,) mean structural similarity of ``x`` and ``y`` (B, C, H, W), which are not rescaled (see `ssim_map`)."""
    return ssim_map(x, y).flatten(1).mean(1)


def ssim_map(x: Tensor, y: Tensor) -> Tensor:
    """(B, C, H, W) structural similarity of ``x`` and ``y`` around each pixel, which are not rescaled.

    It is computed per channel, with an 11 x 11 Gaussian window of standard deviation 1.5, zero padding, and the
    constants for images in [0, 1], which GDMP's implementation uses on images in [-1, 1]. On images smaller than the
    window, the window is the largest odd one that fits.
    """
    height, width = x.shape[-2:]
    size = min(WINDOW, *(side - 1 + side % 2 for side in (height, width)))
    down = _window(height, size, x)
    across = down if width == height else _window(width, size, x)
    # All five means at once, as products of matrices: many times faster than convolutions, where images are small.
    mean_x, mean_y, mean_xx, mean_yy, mean_xy = (down @ torch.stack((x, y, x * x, y * y, x * y)) @ across.mT).unbind()
    product, squares = mean_x * mean_y, mean_x * mean_x + mean_y * mean_y
    likeness = (2 * product + C1) * (2 * (mean_xy - product) + C2)
    return likeness / ((squares + C1) * (mean_xx + mean_yy - squares + C2))


def _window(side: int, size: int, like: Tensor) -> Tensor:
    """(side, side): the means under a Gaussian window of ``size`` pixels around each of ``side``; zeros beyond."""
    at = torch.arange(side, dtype=like.dtype, device=like.device)
    line = (-0.5 * ((at[:size] - size // 2) / SIGMA).square()).exp()
    apart = (at[:, None] - at).abs()
    return torch.where(apart <= size // 2, (-0.5 * (apart / SIGMA).square()).exp(), 0.0) / line.sum()
