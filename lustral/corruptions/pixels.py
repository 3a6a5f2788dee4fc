"""Filters and resampling on batches, with any border and reach: the tools of the corruptions.

All of it is for float64, whose last bits vanish when the corrupted image is rounded to 8 bits: so an image's pixels do
not depend on the batch that it is in, though convolutions of another shape may add up in another order.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Border = Literal["edge", "mirror", "symmetric"]
"""What lies beyond the edge: its pixel again, the image mirrored about its last pixel, or about the edge itself."""


def within(position: Tensor, size: int, border: Border) -> Tensor:
    """Integer positions, however far outside, as positions in [0, size)."""
    if border == "edge" or size == 1:
        return position.clamp(0, size - 1)
    period = 2 * size - 2 if border == "mirror" else 2 * size
    folded = position % period
    return torch.where(folded < size, folded, period - folded - int(border == "symmetric"))


def gaussian_taps(sigma: float, radius: int) -> Tensor:
    """(2 radius + 1,) float64: a Gaussian's values at whole pixels, which sum to 1."""
    if radius == 0 or sigma <= 0:
        return torch.ones(1, dtype=torch.float64)
    at = torch.arange(-radius, radius + 1, dtype=torch.float64)
    taps = torch.exp(-0.5 * (at / sigma) ** 2)
    return taps / taps.sum()


def filter_matrix(taps: Tensor, size: int, border: Border) -> Tensor:
    """(size, size) float64: the filter ``taps`` (2 r + 1,) on a line of ``size`` pixels, as a matrix."""
    radius, place = len(taps) // 2, torch.arange(size)
    matrix = torch.zeros(size, size, dtype=torch.float64)
    for offset, tap in zip(range(-radius, radius + 1), taps, strict=True):
        matrix.index_put_((place, within(place + offset, size, border)), tap.expand(size), accumulate=True)
    return matrix


def gaussian_blurred(x: Tensor, sigma: float, border: Border = "edge", truncate: float = 4.0) -> Tensor:
    """``x`` (..., H, W) after a Gaussian filter that ends ``truncate`` standard deviations away."""
    taps = gaussian_taps(sigma, int(truncate * sigma + 0.5))
    if len(taps) == 1:
        return x
    return resampled(x, *(filter_matrix(taps, size, border) for size in x.shape[-2:]))


def resampled(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """``x`` (..., H, W) with matrices (H', H) and (W', W) applied to its columns and rows: (..., H', W')."""
    return rows.to(x.device) @ x @ columns.to(x.device).mT


def convolved(x: Tensor, kernel: Tensor, border: Border = "mirror") -> Tensor:
    """``x`` (B, C, H, W) filtered with a point-symmetric ``kernel`` (2 r + 1, 2 r + 1), channel by channel; by Fourier
    transforms, since float64 convolutions are slow."""
    radius = len(kernel) // 2
    rows, columns = (within(torch.arange(-radius, n + radius), n, border).to(x.device) for n in x.shape[-2:])
    wide = x[..., rows, :][..., columns]
    size = wide.shape[-2:]
    found = torch.fft.irfft2(torch.fft.rfft2(wide) * torch.fft.rfft2(kernel.to(x), s=size), s=size)
    return found[..., 2 * radius :, 2 * radius :]  # where the kernel did not reach around


def picked(x: Tensor, rows: Tensor, columns: Tensor, border: Border = "edge") -> Tensor:
    """``x`` (B, C, H, W) at integer positions ``rows`` and ``columns`` (B, H', W'), the same in all channels."""
    height, width = x.shape[-2:]
    flat = within(rows, height, border) * width + within(columns, width, border)
    found = x.flatten(2).gather(2, flat.flatten(1)[:, None].expand(-1, x.shape[1], -1))
    return found.view(*x.shape[:2], *rows.shape[1:])


def sampled(x: Tensor, rows: Tensor, columns: Tensor, border: Border) -> Tensor:
    """``x`` (B, C, H, W) at positions ``rows`` and ``columns`` (B, H', W') between pixels, bilinearly."""
    top, left = rows.floor(), columns.floor()
    down, right = (rows - top)[:, None], (columns - left)[:, None]
    top, left = top.long(), left.long()
    upper = picked(x, top, left, border) * (1 - right) + picked(x, top, left + 1, border) * right
    lower = picked(x, top + 1, left, border) * (1 - right) + picked(x, top + 1, left + 1, border) * right
    return upper * (1 - down) + lower * down


def zoomed(x: Tensor, factor: float) -> Tensor:
    """The middle of ``x`` (B, C, H, W), enlarged bilinearly (corner pixels on corner pixels) to the size of ``x``."""
    height, width = x.shape[-2:]
    crop = [math.ceil(side / factor) for side in (height, width)]
    top, left = ((side - inner) // 2 for side, inner in zip((height, width), crop, strict=True))
    size = [max(side, round(inner * factor)) for side, inner in zip((height, width), crop, strict=True)]
    part = x[..., top : top + crop[0], left : left + crop[1]]
    large = F.interpolate(part, size=size, mode="bilinear", align_corners=True)
    top, left = ((outer - side) // 2 for outer, side in zip(size, (height, width), strict=True))
    return large[..., top : top + height, left : left + width]


def motion_taps(radius: float, sigma: float) -> Tensor:
    """(2 ceil(radius) + 1,) float64: half a Gaussian, from the pixel itself backwards along its path; sums to 1."""
    at = torch.arange(2 * math.ceil(radius) + 1, dtype=torch.float64)
    taps = torch.exp(-0.5 * (at / sigma) ** 2)
    return taps / taps.sum()


def motion_blurred(x: Tensor, radius: float, sigma: float, angle: Tensor) -> Tensor:
    """``x`` (B, C, H, W) smeared along straight paths, as ImageMagick's motion blur does: half a Gaussian of standard
    deviation ``sigma`` over whole pixels next to the path, edge pixels beyond the edge.

    Args:
        x: the images.
        radius: of the path in pixels; it is 2 ceil(radius) + 1 long.
        sigma: in pixels, positive.
        angle: (B,) degrees.
    """
    turn = torch.deg2rad(angle.to(x.dtype))
    rows, columns = (torch.arange(size, device=x.device) for size in x.shape[-2:])
    total = torch.zeros_like(x)
    for i, tap in enumerate(motion_taps(radius, sigma).tolist()):
        down, right = (torch.ceil(i * part - 0.5 - 1e-9).long()[:, None, None] for part in (turn.sin(), turn.cos()))
        row, column = torch.broadcast_tensors(rows[None, :, None] + down, columns[None, None, :] + right)
        total = total + tap * picked(x, row, column)
    return total


def plasma(noise: list[Tensor], decay: float) -> Tensor:
    """(B, n, n) in [0, 1], n a power of two: a fractal landscape by the diamond-square algorithm on a torus (Fournier,
    Fussell & Carpenter 1982), each brought to the whole range.

    Args:
        noise: for each halving of the grid, from the whole on, (B, 3, m, m) uniform in [-1, 1] with m = 1, 2, 4 ...
            squares a side.
        decay: from one halving to the next, the noise becomes ``decay``^2 times smaller.
    """
    size = 2 ** len(noise)
    ground = noise[0].new_zeros(len(noise[0]), size, size)
    step, height = size, 1.0
    for drawn in noise:
        half, (one, two, three) = step // 2, (height * drawn).unbind(1)
        corner = ground[:, ::step, ::step]
        right, below = corner.roll(-1, 2), corner.roll(-1, 1)
        middle = (corner + right + below + right.roll(-1, 1)) / 4 + one
        ground[:, half::step, half::step] = middle
        ground[:, ::step, half::step] = (corner + right + middle + middle.roll(1, 1)) / 4 + two
        ground[:, half::step, ::step] = (corner + below + middle + middle.roll(1, 2)) / 4 + three
        step, height = half, height / decay**2
    ground = ground - ground.amin((1, 2), keepdim=True)
    return ground / ground.amax((1, 2), keepdim=True)
