"""The DDPM++ U-Net of Song et al. (2021), in which EDM's "SongUNet" and Score-SDE's checkpoints are one function.

Written from the papers' descriptions: residual blocks of BigGAN that resample inside (with a projected shortcut),
every sum divided by sqrt(2), one attention head at chosen resolutions (after every encoder block there, after the last
decoder block only), and an additive time embedding. diffusers' UNet2DModel cannot express it.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lustral.diffusion.schedules import ScheduleName, make_schedule
from lustral.networks.denoisers import PreconditionedDenoiser
from lustral.networks.preconditioners import make_preconditioner
from lustral.networks.weights import load_into

_HALF = math.sqrt(0.5)


def _norm(channels: int) -> nn.GroupNorm:
    """Groups of at least four channels, at most 32 of them."""
    return nn.GroupNorm(min(32, channels // 4), channels, eps=1e-6)


class _Attention(nn.Module):
    """One head over all pixels; q, k and v are the thirds of one 1x1 convolution's channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        # (B, 3C, H, W) to three times (B, 1 head, HW, C).
        q, k, v = self.qkv(self.norm(x)).flatten(2).transpose(1, 2).unsqueeze(1).chunk(3, dim=-1)
        found = F.scaled_dot_product_attention(q, k, v)
        return (x + self.proj(found.squeeze(1).transpose(1, 2).reshape_as(x))) * _HALF


class _Block(nn.Module):
    """GN-SiLU-(resample)-conv, + time, GN-SiLU-dropout-conv, + shortcut; then attention where asked for."""

    def __init__(
        self, channels_in: int, channels: int, embedding: int, dropout: float, attend: bool = False, resample: float = 1
    ) -> None:
        super().__init__()
        self.resample, self.dropout = resample, dropout
        self.norm0, self.conv0 = _norm(channels_in), nn.Conv2d(channels_in, channels, 3, padding=1)
        self.affine = nn.Linear(embedding, channels)
        self.norm1, self.conv1 = _norm(channels), nn.Conv2d(channels, channels, 3, padding=1)
        projected = channels_in != channels or resample != 1
        self.skip = nn.Conv2d(channels_in, channels, 1) if projected else nn.Identity()
        self.attention = _Attention(channels) if attend else nn.Identity()

    def _resampled(self, x: Tensor) -> Tensor:
        """Box filter: the mean of 2x2 pixels down, each pixel four times up."""
        if self.resample == 0.5:
            return F.avg_pool2d(x, 2)
        return F.interpolate(x, scale_factor=2.0, mode="nearest") if self.resample == 2 else x

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv0(self._resampled(F.silu(self.norm0(x))))
        h = F.silu(self.norm1(h + self.affine(embedding)[:, :, None, None]))
        h = self.conv1(F.dropout(h, self.dropout, self.training))
        return self.attention((h + self.skip(self._resampled(x))) * _HALF)


class SongUNet(nn.Module):
    """The network itself: (B, C, H, W) and labels (B,) to (B, C, H, W).

    Args:
        image_size: height and width in pixels.
        channels: of the image.
        base_channels: of the stem and of the time embedding; a level has ``multipliers[l]`` times as many.
        multipliers: one a level; each further level halves the resolution.
        blocks: residual blocks a level in the encoder; the decoder has one more.
        attention_sizes: resolutions in pixels that attend.
        dropout: probability inside each block while training.
        augment_dim: width of EDM's augmentation label (9), for which there is a weight that inference never uses;
            0 for none.
    """

    def __init__(
        self,
        image_size: int,
        channels: int,
        base_channels: int,
        multipliers: Sequence[int],
        blocks: int,
        attention_sizes: Sequence[int],
        dropout: float,
        augment_dim: int = 0,
    ) -> None:
        super().__init__()
        width = 4 * base_channels
        self.base_channels = base_channels
        self.map_augment = nn.Linear(augment_dim, base_channels, bias=False) if augment_dim else None
        self.map0, self.map1 = nn.Linear(base_channels, width), nn.Linear(width, width)
        widths = [base_channels * multiplier for multiplier in multipliers]
        sizes = [image_size >> level for level in range(len(multipliers))]

        def block(channels_in: int, channels: int, attend: bool = False, resample: float = 1) -> _Block:
            return _Block(channels_in, channels, width, dropout, attend, resample)

        self.stem = nn.Conv2d(channels, base_channels, 3, padding=1)
        self.encoder, kept, now = nn.ModuleList(), [base_channels], base_channels
        for level, (size, out) in enumerate(zip(sizes, widths, strict=True)):
            if level:
                self.encoder.append(block(now, now, resample=0.5))
                kept.append(now)
            for _ in range(blocks):
                self.encoder.append(block(now, out, size in attention_sizes))
                kept.append(out)
                now = out
        self.middle = nn.ModuleList([block(now, now, attend=True), block(now, now)])
        self.decoder = nn.ModuleList()
        for level, (size, out) in reversed(list(enumerate(zip(sizes, widths, strict=True)))):
            ups = [] if level == len(sizes) - 1 else [block(now, now, resample=2)]
            inner = []
            for i in range(blocks + 1):
                inner.append(block(now + kept.pop(), out, i == blocks and size in attention_sizes))
                now = out
            self.decoder.append(nn.ModuleList([*ups, *inner]))
        self.norm, self.head = _norm(now), nn.Conv2d(now, channels, 3, padding=1)
        self._start_small()

    def _start_small(self) -> None:
        """The last layer of every residual branch starts near zero, so that the network starts near the identity."""
        with torch.no_grad():
            for module in self.modules():
                for last in (getattr(module, name, None) for name in ("conv1", "proj", "head")):
                    if isinstance(last, nn.Conv2d):
                        last.weight.mul_(1e-5)

    def embed(self, label: Tensor) -> Tensor:
        """(B, 4 base_channels) from labels (B,): sines and cosines of frequencies 1 ... 1e-4, then two layers."""
        half = self.base_channels // 2
        exponent = torch.arange(half, device=label.device, dtype=torch.float32) / (half - 1)
        angle = label.to(torch.float32)[:, None] * (1e-4**exponent)[None, :]
        features = torch.cat((angle.sin(), angle.cos()), dim=1).to(self.map0.weight.dtype)
        return F.silu(self.map1(F.silu(self.map0(features))))

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        embedding = self.embed(label)
        x = self.stem(x)
        kept = [x]
        for block in self.encoder:
            x = block(x, embedding)
            kept.append(x)
        for block in self.middle:
            x = block(x, embedding)
        for level in self.decoder:
            for block in level:  # type: ignore[attr-defined]
                x = block(x if block.resample == 2 else torch.cat((x, kept.pop()), dim=1), embedding)
        return self.head(F.silu(self.norm(x)))


class SongUNetDenoiser(PreconditionedDenoiser):
    """DDPM++ on the continuous VP schedule, as Score-SDE trains it: noise at the label 999 t/1000.

    The defaults are ``cifar10_ddpmpp_deep_continuous``, DiffPure's network for CIFAR-10: 106,632,579 parameters
    (61,804,419 with ``blocks: 4``).

    Args:
        image_size: height and width in pixels.
        channels: of the image, 1 or 3.
        base_channels: of the stem and of the time embedding.
        multipliers: channels of each resolution, as multiples; each further one halves the height and width.
        blocks: residual blocks a resolution.
        attention_sizes: resolutions in pixels that attend.
        dropout: probability inside each block while training.
        preconditioning: how it was trained (Karras et al. 2022, table 1), or "consistency".
        sigma_data: standard deviation of the training images in diffusion space (edm and consistency).
        schedule_type: the process it is asked on; None is the one it was trained on.
        weights: a file written by `save_network`; None leaves them random.
    """

    def __init__(
        self,
        image_size: int = 32,
        channels: int = 3,
        base_channels: int = 128,
        multipliers: Sequence[int] = (1, 2, 2, 2),
        blocks: int = 8,
        attention_sizes: Sequence[int] = (16,),
        dropout: float = 0.1,
        preconditioning: Literal["vp", "ve", "edm", "consistency"] = "vp",
        sigma_data: float = 0.5,
        schedule_type: None | ScheduleName = None,
        weights: None | str = None,
    ) -> None:
        super().__init__()
        if image_size % 2 ** (len(multipliers) - 1):
            raise ValueError(f"image_size {image_size} cannot be halved {len(multipliers) - 1} times: use fewer.")
        if base_channels % 4:
            raise ValueError(f"base_channels is {base_channels}; it must be a multiple of 4.")
        self.image_size, self.channels, self.base_channels = image_size, channels, base_channels
        self.multipliers, self.blocks = list(multipliers), blocks
        self.attention_sizes, self.dropout, self.weights = list(attention_sizes), dropout, weights
        self.preconditioning, self.sigma_data = preconditioning, sigma_data
        self.preconditioner = make_preconditioner(preconditioning, sigma_data)
        own = "edm" if preconditioning == "consistency" else preconditioning
        self.schedule_type, self.schedule = schedule_type, make_schedule(schedule_type or own)
        self.image_shape = (channels, image_size, image_size)
        self.network = SongUNet(image_size, channels, base_channels, multipliers, blocks, attention_sizes, dropout)
        load_into(self, weights)

    def evaluate(self, x: Tensor, label: Tensor) -> Tensor:
        return self.network(x, label)
