"""Blur: defocus, glass, motion and zoom (Hendrycks & Dietterich 2019)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lustral.corruptions.pixels import convolved, gaussian_blurred, gaussian_taps, motion_blurred, picked, zoomed
from lustral.corruptions.severities import Constants
from lustral.noise import NoiseStream

MOST_DEGREES = 45.0


def disk(radius: float, edge: float) -> Tensor:
    """(2 r + 1, 2 r + 1) float64, which sums to 1: the pixels within ``radius``, their edge softened by a Gaussian of
    standard deviation ``edge`` over 3 pixels (over 5 for radii above 8)."""
    soft = 1 if radius <= 8 else 2
    reach = int(radius) + soft
    at = torch.arange(-reach, reach + 1, dtype=torch.float64)
    inside = (at[:, None] ** 2 + at**2 <= radius**2).double()
    taps = gaussian_taps(edge, soft)
    return F.conv2d((inside / inside.sum())[None, None], (taps[:, None] * taps)[None, None], padding=soft)[0, 0]


def defocus_blur(x: Tensor, constants: Constants, noise: NoiseStream) -> Tensor:
    """Out of focus: the mean over a disk."""
    radius, edge = constants
    return convolved(x, disk(radius, edge))


def glass_blur(x: Tensor, constants: Constants, noise: NoiseStream) -> Tensor:
    """Seen through frosted glass: blurred, pixels replaced by neighbours at random, and blurred again.

    As in the authors' code, a pixel is given another's value and not the other way round. All pixels move at once;
    theirs move one after the other, which differs only where the reach is above 1 pixel (never in CIFAR-10-C).
    """
    sigma, reach, times = constants[0], int(constants[1]), int(constants[2])
    height, width = x.shape[-2:]
    x = gaussian_blurred(x, sigma)
    rows, columns = (torch.arange(size, device=x.device) for size in (height, width))
    free = (rows > reach) & (rows <= height - reach)
    free = free[:, None] & ((columns > reach) & (columns <= width - reach))
    for i in range(times):
        drawn = noise.fork("shuffle").uniform((2, height, width), step=i, dtype=x.dtype)
        down, right = ((drawn * 2 * reach).floor().long() - reach).masked_fill(~free, 0).unbind(1)
        x = picked(x, rows[:, None] + down, columns + right)
    return gaussian_blurred(x, sigma)


def motion_blur(x: Tensor, constants: Constants, noise: NoiseStream) -> Tensor:
    """Moved while the shutter was open, in a direction of at most 45 degrees."""
    radius, sigma = constants
    return motion_blurred(x, radius, sigma, angle(noise, -MOST_DEGREES, MOST_DEGREES))


def zoom_blur(x: Tensor, constants: Constants, noise: NoiseStream) -> Tensor:
    """Moved towards the object: the mean of the image and of its enlargements by 1, 1 + step, 1 + 2 steps ..."""
    count, step = int(constants[0]), constants[1]
    return (x + sum(zoomed(x, 1 + i * step) for i in range(count))) / (count + 1)


def angle(noise: NoiseStream, low: float, high: float) -> Tensor:
    """(B,) degrees, uniform between two."""
    return low + (high - low) * noise.fork("angle").uniform((1,), dtype=torch.float64)[:, 0]
