"""Digital: contrast, elastic transformation, pixelation and JPEG (Hendrycks & Dietterich 2019)."""

import torch
from torch import Tensor

from lustral.corruptions.pixels import gaussian_blurred, resampled, sampled
from lustral.corruptions.severities import Constants
from lustral.noise import NoiseStream
from lustral.purifiers.jpeg import through_codec


def contrast(x: Tensor, constants: Constants, noise: NoiseStream) -> Tensor:
    """Brings every channel closer to its mean over the image."""
    (kept,) = constants
    mean = x.mean((2, 3), keepdim=True)
    return mean + kept * (x - mean)


def elastic_transform(x: Tensor, constants: Constants, noise: NoiseStream) -> Tensor:
    """A random affine map, then a smooth random displacement of every pixel (Simard et al. 2003); bilinear."""
    height, width = x.shape[-2:]
    strength, sigma, shift = (share * min(height, width) for share in constants)
    x = _affine(x, shift * _signed(noise.fork("affine"), (3, 2), x))
    rows, columns = (torch.arange(size, dtype=x.dtype, device=x.device) for size in (height, width))
    drawn = _signed(noise.fork("displacement"), (2, height, width), x)
    right, down = (strength * gaussian_blurred(drawn, sigma, "symmetric", truncate=3.0)).unbind(1)
    return sampled(x, rows[:, None] + down, columns + right, "symmetric")


def _affine(x: Tensor, moved: Tensor) -> Tensor:
    """``x`` under the affine map that moves three corners of a square in its middle by ``moved`` (B, 3, 2), as (right,
    down) in pixels: the lower right, the upper right and the upper left one."""
    height, width = x.shape[-2:]
    side = max(1, min(height, width) // 3)  # half of the square's
    middle = torch.tensor([width // 2, height // 2], dtype=x.dtype, device=x.device)
    corners = side * torch.tensor([[1, 1], [1, -1], [-1, -1]], dtype=x.dtype, device=x.device)
    to = middle + corners + moved
    across, along = (to[:, 1] - to[:, 2]) / (2 * side), (to[:, 0] - to[:, 1]) / (2 * side)  # images of the unit vectors
    centre = (to[:, 0] + to[:, 2]) / 2
    determinant = across[:, 0] * along[:, 1] - along[:, 0] * across[:, 1]
    rows, columns = (torch.arange(size, dtype=x.dtype, device=x.device) for size in (height, width))
    right = columns - centre[:, 0, None, None]
    down = rows[:, None] - centre[:, 1, None, None]
    one, other, det = across[..., None, None], along[..., None, None], determinant[:, None, None]
    from_column = middle[0] + (other[:, 1] * right - other[:, 0] * down) / det
    from_row = middle[1] + (one[:, 0] * down - one[:, 1] * right) / det
    return sampled(x, from_row, from_column, "mirror")


def _signed(noise: NoiseStream, shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Uniform in [-1, 1]."""
    return 2 * noise.uniform(shape, dtype=like.dtype) - 1


def pixelate(x: Tensor, constants: Constants, noise: NoiseStream) -> Tensor:
    """A smaller image of block means, enlarged again by the nearest pixel."""
    (share,) = constants
    small = [max(1, int(side * share)) for side in x.shape[-2:]]
    down = [box_matrix(side, less) for side, less in zip(x.shape[-2:], small, strict=True)]
    up = [box_matrix(less, side) for side, less in zip(x.shape[-2:], small, strict=True)]
    return resampled(resampled(x, *down), *up)


def box_matrix(size: int, to: int) -> Tensor:
    """(to, size) float64, whose rows sum to 1: Pillow's BOX filter, the mean of the pixels whose middle lies in the box
    of the new pixel; when enlarging, the nearest pixel."""
    scale = size / to
    middle = (torch.arange(to, dtype=torch.float64) + 0.5) * scale
    away = (torch.arange(size, dtype=torch.float64) + 0.5 - middle[:, None]) / max(scale, 1.0)
    inside = ((away > -0.5) & (away <= 0.5)).double()
    return inside / inside.sum(1, keepdim=True)


def jpeg_compression(x: Tensor, constants: Constants, noise: NoiseStream) -> Tensor:
    """Encoded and decoded by libjpeg at a quality (see `lustral.purifiers.jpeg`)."""
    return through_codec(x, int(constants[0]))
