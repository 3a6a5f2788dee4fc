"""The parts of DDPM++ and NCSN++ (Song et al. 2021): BigGAN's residual blocks with resampling inside, attention over
pixels, and StyleGAN2's FIR resampling. Every sum is divided by sqrt(2).
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HALF = math.sqrt(0.5)


def group_norm(channels: int) -> nn.GroupNorm:
    """A group normalisation with at most 32 groups, of at least four channels each."""
    return nn.GroupNorm(min(32, channels // 4), channels, eps=1e-6)


class _Attend(torch.autograd.Function):
    """softmax(q k' / sqrt(C)) v of (B, 1, N, C) by the fused kernel, with an explicit derivative.

    The fused kernels have no second derivative, and the forward pass cannot know whether one will be needed. Here the
    backward pass consists of plain products, which can be differentiated again, so the fused forward pass is used
    always.
    """

    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        (q, k, v), (grad,) = ctx.saved_tensors, grads
        scale = 1.0 / math.sqrt(q.shape[-1])
        share = (scale * q @ k.mT).softmax(dim=-1)
        along = grad @ v.mT
        inner = scale * share * (along - (along * share).sum(dim=-1, keepdim=True))
        return inner @ k, inner.mT @ q, share.mT @ grad


class Attention(nn.Module):
    """One head over all pixels; q, k and v are the thirds of one 1x1 convolution's channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        # (B, 3C, H, W) to three times (B, 1 head, HW, C); the fused kernels need contiguous channels.
        q, k, v = self.qkv(self.norm(x)).flatten(2).mT.contiguous().unsqueeze(1).chunk(3, dim=-1)
        found: Tensor = _Attend.apply(q, k, v)  # type: ignore[assignment]
        return (x + self.proj(found.squeeze(1).mT.reshape_as(x))) * HALF


class Resample(nn.Module):
    """Halves (``factor`` 0.5) or doubles (2) the height and width of (B, C, H, W).

    Args:
        factor: 0.5 or 2.
        taps: the separable filter, before normalisation: (1, 1) is a box (the mean of 2x2 pixels, or each pixel four
            times), (1, 3, 3, 1) StyleGAN2's. Pixels outside the image are zero.
    """

    def __init__(self, factor: float, taps: Sequence[int]) -> None:
        super().__init__()
        self.factor, self.taps = factor, tuple(taps)
        line = torch.tensor(taps, dtype=torch.float32) / sum(taps)
        self.register_buffer("kernel", torch.outer(line, line)[None, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if len(self.taps) == 2:
            return F.avg_pool2d(x, 2) if self.factor == 0.5 else F.interpolate(x, scale_factor=2.0, mode="nearest")
        channels, pad = x.shape[1], len(self.taps) // 2 - 1
        kernel = self.get_buffer("kernel").to(x.dtype).expand(channels, -1, -1, -1)
        if self.factor == 0.5:
            return F.conv2d(x, kernel, stride=2, padding=pad, groups=channels)
        return F.conv_transpose2d(x, 4.0 * kernel, stride=2, padding=pad, groups=channels)


class Pyramid(nn.Module):
    """The image at half its size, with the channels of the network's features, added to these features.

    It applies a filter, then a 3x3 convolution with stride 2; the image is padded once, before both.
    """

    def __init__(self, channels_in: int, channels: int, taps: Sequence[int]) -> None:
        super().__init__()
        self.filter, self.pad = Resample(0.5, taps), len(taps) // 2
        self.conv = nn.Conv2d(channels_in, channels, 3, stride=2)

    def forward(self, image: Tensor, x: Tensor) -> Tensor:
        """(B, channels, H/2, W/2) from the previous level of the pyramid (B, channels_in, H, W) and the network's
        features ``x``."""
        channels, kernel = image.shape[1], self.filter.get_buffer("kernel").to(image.dtype)
        smooth = F.conv2d(image, kernel.expand(channels, -1, -1, -1), padding=self.pad, groups=channels)
        return (x + self.conv(smooth)) * HALF


class Block(nn.Module):
    """GN-SiLU-(resample)-conv, + time embedding, GN-SiLU-dropout-conv, + shortcut; then attention if ``attend``."""

    def __init__(
        self,
        channels_in: int,
        channels: int,
        embedding: int,
        dropout: float,
        attend: bool = False,
        resample: float = 1,
        taps: Sequence[int] = (1, 1),
    ) -> None:
        super().__init__()
        self.dropout, self.factor = dropout, resample
        self.resample = Resample(resample, taps) if resample != 1 else nn.Identity()
        self.norm0, self.conv0 = group_norm(channels_in), nn.Conv2d(channels_in, channels, 3, padding=1)
        self.affine = nn.Linear(embedding, channels)
        self.norm1, self.conv1 = group_norm(channels), nn.Conv2d(channels, channels, 3, padding=1)
        projected = channels_in != channels or resample != 1
        self.skip = nn.Conv2d(channels_in, channels, 1) if projected else nn.Identity()
        self.attention = Attention(channels) if attend else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv0(self.resample(F.silu(self.norm0(x))))
        h = F.silu(self.norm1(h + self.affine(embedding)[:, :, None, None]))
        h = self.conv1(F.dropout(h, self.dropout, self.training))
        return self.attention((h + self.skip(self.resample(x))) * HALF)
