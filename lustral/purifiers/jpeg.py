"""JPEG compression as a purifier (Dziugaite et al. 2016), and a differentiable stand-in for it. docs/transforms.md."""

import io
import math
from collections.abc import Callable, Collection
from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from lustral.diffusion import Context
from lustral.noise import NoiseStream
from lustral.purifiers.base import Purified, Purifier
from lustral.purifiers.rounding import STANDS, Stand, clamp_straight_through

Rounding = Literal["codec", Stand]

# The example tables of ITU-T T.81, annex K, which libjpeg takes: luminance and chrominance.
_LUMINANCE = [
    [16, 11, 10, 16, 24, 40, 51, 61],
    [12, 12, 14, 19, 26, 58, 60, 55],
    [14, 13, 16, 24, 40, 57, 69, 56],
    [14, 17, 22, 29, 51, 87, 80, 62],
    [18, 22, 37, 56, 68, 109, 103, 77],
    [24, 35, 55, 64, 81, 104, 113, 92],
    [49, 64, 78, 87, 103, 121, 120, 101],
    [72, 92, 95, 98, 112, 100, 103, 99],
]
_CHROMINANCE = [
    [17, 18, 24, 47, 99, 99, 99, 99],
    [18, 21, 26, 66, 99, 99, 99, 99],
    [24, 26, 56, 99, 99, 99, 99, 99],
    [47, 66, 99, 99, 99, 99, 99, 99],
    *[[99] * 8 for _ in range(4)],
]
_TO_YCBCR = [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]]
_TO_RGB = [[1.0, 0.0, 1.402], [1.0, -0.344136, -0.714136], [1.0, 1.772, 0.0]]


class JPEG(Purifier):
    """Encodes and decodes every image, which is rounded to 8 bits first.

    The codec has no derivative, and that of what it computes is zero almost everywhere: the exact gradient is blind and
    not offered. A `Variant` of ``rounding`` computes the same steps in floating point (8 x 8 cosine transform, scaled
    annex K tables, chroma of half the resolution), with roundings that can be differentiated.

    Args:
        quality: 1 to 100, as libjpeg scales its tables.
        rounding: "codec", Pillow's libjpeg on the CPU; "straight_through", nearly its images, with derivatives as if
            nothing was rounded or clamped; "soft", images further away, whose gradient is exact (see `rounding`).

    Raises:
        ValueError: if an option is out of its range; when images are purified, if they have other than 1 or 3 channels.
    """

    random = False

    def __init__(self, quality: int = 75, rounding: Rounding = "codec") -> None:
        super().__init__()
        if not 1 <= quality <= 100:
            raise ValueError(f"quality is {quality}; it lies in 1..100.")
        if rounding not in ("codec", *STANDS):
            raise ValueError(f"rounding is {rounding!r}; it may be codec, {', '.join(get_args(Stand))}.")
        self.quality = quality
        self.rounding: Rounding = rounding
        if rounding == "codec":
            self.gradient_modes = ("bpda", "detached")
            self.instead = (
                "Through the codec it would be 0: attack with a surrogate Variant of changes {rounding: "
                "straight_through} or {rounding: soft}."
            )

    def run(self, x: Tensor, context: Context, noise: NoiseStream, wants: Collection[str]) -> Purified:
        if x.shape[1] not in (1, 3):
            raise ValueError(f"JPEG is of 1 or 3 channels, and these images have {x.shape[1]}: choose another.")
        made = through_codec(x, self.quality) if self.rounding == "codec" else stand_in(x, self.quality, self.rounding)
        return Purified(made[None])


def through_codec(x: Tensor, quality: int) -> Tensor:
    """Images ``x`` (B, 1 or 3, H, W) in [0, 1], rounded to 8 bits, encoded and decoded by Pillow's libjpeg."""
    levels = (x.detach() * 255.0).round().clamp(0, 255).to("cpu", torch.uint8).movedim(1, -1).numpy()
    decoded = torch.stack([torch.from_numpy(_coded(image, quality)) for image in levels])
    return decoded.movedim(-1, 1).to(x.device, x.dtype) / 255.0


def _coded(image: np.ndarray, quality: int) -> np.ndarray:
    """An image (H, W, 1 or 3) of 8 bits, encoded and decoded."""
    file = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(file, "JPEG", quality=quality)
    with Image.open(file) as decoded:
        return np.array(decoded).reshape(image.shape)


def stand_in(x: Tensor, quality: int, rounding: Stand) -> Tensor:
    """Images ``x`` (B, 1 or 3, H, W) in [0, 1] as JPEG's steps make them, with ``rounding`` wherever values are
    rounded: the pixels that come in and go out, the components and the coefficients.

    Decoded pixels leave the range of 8 bits easily, and are clamped: half of a picture's black background. Straight
    through, the derivative of a clamp is 1 too. With the true one, which is 0 there, attacks were seen to be weaker
    than those that know of no codec.
    """
    rounded = STANDS[rounding]
    clamped = clamp_straight_through if rounding == "straight_through" else torch.clamp
    height, width = x.shape[-2:]
    levels = clamped(rounded(x * 255.0), 0.0, 255.0)
    if x.shape[1] == 1:
        out = _block_coded(levels - 128.0, _table(_LUMINANCE, quality, x), rounded) + 128.0
    else:
        ycc = rounded(torch.einsum("ij,bjhw->bihw", x.new_tensor(_TO_YCBCR), levels))
        light = _block_coded(ycc[:, :1] - 128.0, _table(_LUMINANCE, quality, x), rounded) + 128.0
        colour = _block_coded(_halved(ycc[:, 1:], rounded), _table(_CHROMINANCE, quality, x), rounded)
        # libjpeg's "fancy upsampling", with weights of 3/4 and 1/4, is bilinear.
        colour = rounded(colour)[..., : math.ceil(height / 2), : math.ceil(width / 2)]
        colour = F.interpolate(colour, scale_factor=2, mode="bilinear")[..., :height, :width]
        out = torch.einsum("ij,bjhw->bihw", x.new_tensor(_TO_RGB), torch.cat((rounded(light), rounded(colour)), 1))
    return clamped(rounded(out), 0.0, 255.0) / 255.0


def _table(base: list[list[int]], quality: int, like: Tensor) -> Tensor:
    """(8, 8) of the divisors at this quality."""
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    return ((torch.tensor(base) * scale + 50) // 100).clamp(1, 255).to(like)


def _block_coded(x: Tensor, table: Tensor, rounded: Callable[[Tensor], Tensor]) -> Tensor:
    """``x`` (B, C, H, W) around 0 with the cosine coefficients of its 8 x 8 blocks divided by ``table``, rounded, and
    multiplied again. The blocks at the edge are filled with the last row and column, as libjpeg does."""
    padded = F.pad(x, (0, -x.shape[-1] % 8, 0, -x.shape[-2] % 8), mode="replicate")
    blocks = padded.unflatten(-1, (-1, 8)).unflatten(-3, (-1, 8))  # (B, C, rows, 8, columns, 8)
    basis = _cosines(x)
    found = torch.einsum("ij,bcrjsk,lk->bcrisl", basis, blocks, basis)
    kept = rounded(found / table[:, None, :]) * table[:, None, :]
    back = torch.einsum("ji,bcrjsk,kl->bcrisl", basis, kept, basis)
    return back.flatten(-2).flatten(-3, -2)[..., : x.shape[-2], : x.shape[-1]]


def _halved(x: Tensor, rounded: Callable[[Tensor], Tensor]) -> Tensor:
    """Chroma ``x`` (B, 2, H, W) at half the resolution. Blocks are filled to the right with the last column of ``x``,
    downwards (by `_block_coded`) with the last row of the result, as libjpeg does."""
    wide = F.pad(x, (0, -x.shape[-1] % 16, 0, -x.shape[-2] % 2), mode="replicate")
    return rounded(F.avg_pool2d(wide, 2))


def _cosines(like: Tensor) -> Tensor:
    """(8, 8): the orthonormal cosine transform of type II."""
    at = torch.arange(8, dtype=torch.float64)
    basis = torch.cos(at[:, None] * (2 * at + 1) * (math.pi / 16)) / 2.0
    basis[0] /= math.sqrt(2.0)
    return basis.to(like)
