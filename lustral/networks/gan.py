"""A small generative adversarial network: a generator whose latents are vectors, and its discriminator."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lustral.diffusion import Generator
from lustral.networks.builders import announced
from lustral.networks.weights import load_into, load_network

_COARSEST = 4
"""Pixels of the side at which the generator begins and the discriminator ends."""


def _check(image_size: int, channels: int, widths: Sequence[int]) -> None:
    if not widths or min(channels, *widths) < 1 or image_size != _COARSEST * 2 ** (len(widths) - 1):
        raise ValueError(
            f"image_size is {image_size}, channels {channels} and widths {list(widths)}: give at least 1 channel, and "
            f"one width for each size {_COARSEST}, {2 * _COARSEST}, {4 * _COARSEST} ... up to that of the image."
        )


@announced
class GANGenerator(Generator):
    """Images from latent vectors z ~ N(0, I), by convolutions at sizes that double; the smallest generator that fills
    the seam. 47,977 parameters with the defaults.

    A linear layer gives 4 x 4 pixels; at each size follow two 3x3 convolutions, each with group normalisation and
    SiLU, which is smooth: CMAP's exact gradient takes second derivatives. The image is a sigmoid, so it lies in (0, 1).
    Nothing couples two latents. It has no encoder, so it cannot be inverted.

    Args:
        image_size: height and width in pixels, 4 times a power of two.
        channels: of the image.
        latent_size: d, elements of a latent.
        widths: channels at 4 pixels, 8 pixels ... up to the image's size.
        weights: a file written by `save_network`; None leaves the weights random.

    Raises:
        ValueError: if a number is out of its range, or the widths do not lead to the image's size.
    """

    def __init__(
        self,
        image_size: int = 8,
        channels: int = 1,
        latent_size: int = 32,
        widths: Sequence[int] = (32, 24),
        weights: None | str = None,
    ) -> None:
        super().__init__()
        _check(image_size, channels, widths)
        if latent_size < 1:
            raise ValueError(f"latent_size is {latent_size}; it must be at least 1.")
        self.image_size, self.channels, self.latent_size = image_size, channels, latent_size
        self.widths, self.weights = list(widths), weights
        self.latent_shape, self.latent_std = (latent_size,), 1.0
        self.image_shape = (channels, image_size, image_size)
        self.first = nn.Linear(latent_size, widths[0] * _COARSEST**2)
        before = [widths[0], *widths[:-1]]
        self.stages = nn.ModuleList(
            nn.Sequential(*_convolution(into, width), *_convolution(width, width))
            for into, width in zip(before, widths, strict=True)
        )
        self.last = nn.Conv2d(widths[-1], channels, 3, padding=1)
        load_into(self, weights)

    def forward(self, z: Tensor) -> Tensor:
        hidden = self.first(z).unflatten(1, (self.widths[0], _COARSEST, _COARSEST))
        for number, stage in enumerate(self.stages):
            hidden = stage(F.interpolate(hidden, scale_factor=2.0) if number else hidden)
        return torch.sigmoid(self.last(hidden))


class GANDiscriminator(nn.Module):
    """How real an image looks, as a logit: the generator's stages in reverse, without normalisation, by which images
    of a batch would be compared or a gradient penalty weakened.

    Args:
        image_size: height and width in pixels, 4 times a power of two.
        channels: of the image.
        widths: channels at the image's size, half of it ... down to 4 pixels.

    Raises:
        ValueError: if a number is out of its range, or the widths do not lead to the image's size.
    """

    def __init__(self, image_size: int = 8, channels: int = 1, widths: Sequence[int] = (24, 48)) -> None:
        super().__init__()
        _check(image_size, channels, widths)
        self.image_size, self.channels, self.widths = image_size, channels, list(widths)
        self.image_shape = (channels, image_size, image_size)
        before = [channels, *widths[:-1]]
        self.stages = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(into, width, 3, padding=1), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1), nn.SiLU()
            )
            for into, width in zip(before, widths, strict=True)
        )
        self.last = nn.Linear(widths[-1] * _COARSEST**2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B,) logits of images ``x`` (B, C, H, W) in [0, 1]."""
        hidden = 2.0 * x - 1.0
        for number, stage in enumerate(self.stages):
            hidden = stage(F.avg_pool2d(hidden, 2) if number else hidden)
        return self.last(hidden.flatten(1))[:, 0]


def _convolution(into: int, width: int) -> list[nn.Module]:
    groups = next(g for g in (8, 4, 2, 1) if width % g == 0)
    return [nn.Conv2d(into, width, 3, padding=1), _GroupNorm(groups, width), _SiLU()]


# Torch's own layers take another kernel for their gradient where that gradient is to be differentiated again, which
# rounds otherwise: CMAP's images would depend on whether gradients are on. Written out, as they are in evaluation mode,
# the bits are the same; training takes the faster ones.


class _GroupNorm(nn.GroupNorm):
    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return super().forward(x)
        grouped = x.unflatten(1, (self.num_groups, -1))
        apart = grouped - grouped.mean((2, 3, 4), keepdim=True)
        spread = apart.square().mean((2, 3, 4), keepdim=True)
        normal = (apart * torch.rsqrt(spread + self.eps)).flatten(1, 2)
        return normal * self.weight[:, None, None] + self.bias[:, None, None]


class _SiLU(nn.SiLU):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if self.training else x * torch.sigmoid(x)


def load_generator(weights: str) -> GANGenerator:
    """Rebuild the generator of a weights file (use as a ``class_path``).

    Raises:
        ValueError: if the file holds another kind of network.
    """
    network = load_network(weights)
    if not isinstance(network, GANGenerator):
        raise ValueError(
            f"{weights} holds a {type(network).__name__}, which is no GANGenerator: name the weights of "
            "configs/train/digits_gan.yaml; a consistency model is a generator inside "
            "lustral.diffusion.ConsistencyGenerator."
        )
    return network
