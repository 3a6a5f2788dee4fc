"""Structural similarity (Wang et al. 2004)."""

import torch
import torch.nn.functional as F
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
    size = min(WINDOW, *(side - 1 + side % 2 for side in x.shape[-2:]))
    at = torch.arange(size, dtype=x.dtype, device=x.device) - size // 2
    line = (-0.5 * (at / SIGMA).square()).exp()
    window = torch.outer(line, line) / line.sum().square()
    kernel = window.expand(x.shape[1], 1, size, size)

    def mean(z: Tensor) -> Tensor:
        return F.conv2d(z, kernel, padding=size // 2, groups=z.shape[1])

    mean_x, mean_y = mean(x), mean(y)
    var_x, var_y = mean(x * x) - mean_x**2, mean(y * y) - mean_y**2
    shared = mean(x * y) - mean_x * mean_y
    likeness = (2 * mean_x * mean_y + C1) * (2 * shared + C2)
    return likeness / ((mean_x**2 + mean_y**2 + C1) * (var_x + var_y + C2))
