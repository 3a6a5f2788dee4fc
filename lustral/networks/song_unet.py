"""The U-Nets of Song et al. (2021), DDPM++ and NCSN++, for both EDM's "SongUNet" and Score-SDE's checkpoints.

Written from the papers' descriptions: BigGAN's residual blocks with resampling inside (with a projected shortcut),
every sum divided by sqrt(2), one attention head at chosen resolutions (there after every encoder block, but only after
the last decoder block), and an additive time embedding. diffusers' UNet2DModel cannot express it.
"""

import math
from collections.abc import Sequence
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lustral.diffusion.schedules import EDMSchedule, ScheduleName, make_schedule
from lustral.networks.builders import announced
from lustral.networks.denoisers import PreconditionedDenoiser
from lustral.networks.preconditioners import make_preconditioner
from lustral.networks.song_blocks import Block, Pyramid, group_norm
from lustral.networks.weights import load_into

_FOURIER_SCALE = 16.0


class SongUNet(nn.Module):
    """The network itself: (B, C, H, W) and labels (B,) to (B, C, H, W).

    NCSN++ is ``embedding="fourier", encoder="residual", resample_filter=(1, 3, 3, 1), channel_mult_noise=2``; the
    defaults are DDPM++.

    Args:
        image_size: height and width in pixels.
        channels: of the image.
        base_channels: channels of the stem; level l has ``multipliers[l]`` times as many.
        multipliers: one per level; each further level halves the resolution.
        blocks: residual blocks per level in the encoder; the decoder has one more.
        attention_sizes: resolutions in pixels whose blocks have attention.
        dropout: probability inside each block while training.
        embedding: features of the time label: "positional", sines and cosines at frequencies 1 ... 1e-4, or "fourier",
            at random frequencies that are drawn once (standard deviation 16) and kept in the state.
        encoder: "standard", or "residual": the image itself, filtered and convolved, is added at every encoder level.
        resample_filter: (1, 1), a box, or (1, 3, 3, 1).
        channel_mult_noise: number of features of the time label, in units of ``base_channels``.
        augment_dim: width of EDM's augmentation label (9), for which there is a frozen weight that is never used here;
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
        embedding: Literal["positional", "fourier"] = "positional",
        encoder: Literal["standard", "residual"] = "standard",
        resample_filter: Sequence[int] = (1, 1),
        channel_mult_noise: int = 1,
        augment_dim: int = 0,
    ) -> None:
        super().__init__()
        width, self.features = 4 * base_channels, channel_mult_noise * base_channels
        if embedding == "fourier":
            frequencies = nn.init.normal_(torch.empty(self.features // 2), std=_FOURIER_SCALE)
            self.register_buffer("frequencies", frequencies)
        self.embedding = embedding
        self.map_augment = nn.Linear(augment_dim, self.features, bias=False) if augment_dim else None
        if self.map_augment is not None:
            self.map_augment.requires_grad_(False)  # without augmentation it never has a gradient, which DDP waits for
        self.map0, self.map1 = nn.Linear(self.features, width), nn.Linear(width, width)
        widths = [base_channels * multiplier for multiplier in multipliers]
        sizes = [image_size >> level for level in range(len(multipliers))]

        def block(channels_in: int, channels: int, attend: bool = False, resample: float = 1) -> Block:
            return Block(channels_in, channels, width, dropout, attend, resample, resample_filter)

        self.stem = nn.Conv2d(channels, base_channels, 3, padding=1)
        self.encoder, kept, now = nn.ModuleList(), [base_channels], base_channels
        self.pyramid, of_image = nn.ModuleList(), channels
        for level, (size, out) in enumerate(zip(sizes, widths, strict=True)):
            if level:
                self.encoder.append(block(now, now, resample=0.5))
                kept.append(now)
                if encoder == "residual":
                    self.pyramid.append(Pyramid(of_image, now, resample_filter))
                    of_image = now
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
        self.norm, self.head = group_norm(now), nn.Conv2d(now, channels, 3, padding=1)
        self._start()

    def _start(self) -> None:
        """Initialise with uniform weights of Glorot and Bengio's variance and zero biases, as published; the last layer
        of every residual branch is near zero."""
        with torch.no_grad():
            for module in self.modules():
                if isinstance(module, (nn.Conv2d, nn.Linear)):
                    nn.init.xavier_uniform_(module.weight)
                    if module.bias is not None:
                        nn.init.zeros_(module.bias)
            for module in self.modules():
                for last in (getattr(module, name, None) for name in ("conv1", "proj", "head")):
                    if isinstance(last, nn.Conv2d):
                        last.weight.mul_(1e-5)

    def embed(self, label: Tensor) -> Tensor:
        """The time embedding (B, 4 base_channels) of labels (B,): sines and cosines, then two layers."""
        if self.embedding == "fourier":
            frequencies = 2.0 * math.pi * self.get_buffer("frequencies")
        else:
            half = self.features // 2
            exponent = torch.arange(half, device=label.device, dtype=torch.float32) / (half - 1)
            frequencies = 1e-4**exponent
        angle = label.to(frequencies.dtype)[:, None] * frequencies[None, :]
        features = torch.cat((angle.sin(), angle.cos()), dim=1).to(self.map0.weight.dtype)
        return F.silu(self.map1(F.silu(self.map0(features))))

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        embedding = self.embed(label)
        image, pyramid = x, iter(self.pyramid)
        x = self.stem(x)
        kept = [x]
        for block in self.encoder:
            x = block(x, embedding)
            if block.factor == 0.5 and len(self.pyramid):
                x = image = next(pyramid)(image, x)
            kept.append(x)
        for block in self.middle:
            x = block(x, embedding)
        for level in self.decoder:
            for block in cast(nn.ModuleList, level):
                x = block(x if block.factor == 2 else torch.cat((x, kept.pop()), dim=1), embedding)
        return self.head(F.silu(self.norm(x)))


@announced
class SongUNetDenoiser(PreconditionedDenoiser):
    """DDPM++ and NCSN++ with the preconditioning that they were trained with.

    The defaults are Score-SDE's ``cifar10_ddpmpp_deep_continuous``, DiffPure's network for CIFAR-10: 106,632,579
    parameters (61,804,419 with ``blocks: 4``).

    Args:
        image_size: height and width in pixels.
        channels: of the image, 1 or 3.
        base_channels: channels of the stem; the time embedding has four times as many.
        multipliers: channels of each resolution, as multiples of ``base_channels``; each further one halves height and
            width.
        blocks: residual blocks per resolution.
        attention_sizes: resolutions in pixels whose blocks have attention.
        dropout: probability inside each block while training.
        embedding: time embedding: "positional" (DDPM++) or "fourier" (NCSN++: random frequencies, kept in the weights).
        encoder: "standard" (DDPM++) or "residual" (NCSN++: a pyramid of the image is added at every level).
        resample_filter: [1, 1] (DDPM++) or [1, 3, 3, 1] (NCSN++).
        channel_mult_noise: width of the time features in units of ``base_channels``: 1 (DDPM++) or 2 (NCSN++).
        augment_dim: width of EDM's augmentation label, 9 in its published weights; 0 for none.
        preconditioning: that of its training (Karras et al. 2022, table 1), or "consistency".
        sigma_data: standard deviation of the training images in diffusion space (edm and consistency).
        sigma_min: smallest noise ratio of the schedule edm, at which a consistency function is the identity (0.003 in
            ECT's published files).
        sigma_max: largest noise ratio of the schedule edm, from which a consistency function generates.
        schedule_type: the diffusion process on which the denoiser is used; None is the one it was trained on.
        labels: "continuous" gives the network the time label that it was trained with; "index" (with preconditioning
            vp) the index of the nearest of DDPM's 1000 levels, 0 ... 999, as in the code of Lee and Kim and of SSNI
            (with schedule_type linear).
        weights: a file written by `save_network`; None leaves the weights random.
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
        embedding: Literal["positional", "fourier"] = "positional",
        encoder: Literal["standard", "residual"] = "standard",
        resample_filter: Sequence[int] = (1, 1),
        channel_mult_noise: int = 1,
        augment_dim: int = 0,
        preconditioning: Literal["vp", "ve", "edm", "consistency"] = "vp",
        sigma_data: float = 0.5,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        schedule_type: None | ScheduleName = None,
        labels: Literal["continuous", "index"] = "continuous",
        weights: None | str = None,
    ) -> None:
        super().__init__()
        if labels not in ("continuous", "index") or (labels == "index" and preconditioning != "vp"):
            raise ValueError(f"labels is {labels!r}; it may be continuous, or index where preconditioning is vp.")
        if image_size % 2 ** (len(multipliers) - 1):
            raise ValueError(f"image_size {image_size} cannot be halved {len(multipliers) - 1} times: use fewer.")
        sizes = [image_size >> level for level in range(len(multipliers))]
        if strange := sorted(set(attention_sizes) - set(sizes)):
            raise ValueError(f"attention_sizes has {strange}, but the resolutions of this network are {sizes}.")
        if blocks < 1:
            raise ValueError(f"blocks is {blocks}; a resolution has at least 1.")
        if base_channels % 4:
            raise ValueError(f"base_channels is {base_channels}; it must be a multiple of 4.")
        if embedding not in ("positional", "fourier"):
            raise ValueError(f"embedding is {embedding!r}; it may be positional or fourier.")
        if encoder not in ("standard", "residual"):
            raise ValueError(f"encoder is {encoder!r}; it may be standard or residual.")
        if list(resample_filter) not in ([1, 1], [1, 3, 3, 1]):
            raise ValueError(f"resample_filter is {list(resample_filter)}; it may be [1, 1] or [1, 3, 3, 1].")
        self.image_size, self.channels, self.base_channels = image_size, channels, base_channels
        self.multipliers, self.blocks = list(multipliers), blocks
        self.attention_sizes, self.dropout, self.weights = list(attention_sizes), dropout, weights
        self.embedding, self.encoder, self.resample_filter = embedding, encoder, list(resample_filter)
        self.channel_mult_noise, self.augment_dim = channel_mult_noise, augment_dim
        self.preconditioning, self.sigma_data, self.sigma_min = preconditioning, sigma_data, sigma_min
        self.sigma_max, self.labels = sigma_max, labels
        # A network trained on a table has VP's scales and the index as label.
        trained = "linear" if labels == "index" else preconditioning
        self.preconditioner = make_preconditioner(trained, sigma_data, sigma_min)
        self.is_consistency_function = preconditioning == "consistency"
        own = schedule_type or ("edm" if self.is_consistency_function else preconditioning)
        self.schedule_type = schedule_type
        self.schedule = EDMSchedule(sigma_min, sigma_max) if own == "edm" else make_schedule(own)
        self.image_shape = (channels, image_size, image_size)
        self.network = SongUNet(
            image_size,
            channels,
            base_channels,
            multipliers,
            blocks,
            attention_sizes,
            dropout,
            embedding,
            encoder,
            resample_filter,
            channel_mult_noise,
            augment_dim,
        )
        load_into(self, weights)

    def evaluate(self, x: Tensor, label: Tensor) -> Tensor:
        return self.network(x, label)
