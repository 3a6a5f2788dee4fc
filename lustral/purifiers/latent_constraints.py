"""How far the latents of an image are from the distribution that the generator was trained on (CMAP, equation 12)."""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

_SMALL = 1e-12
"""Under a root, relative to the variance of the latents: equal latents have a gradient."""


class LatentConstraint(ABC):
    """A distance between the n latents of an image and N(0, std^2 I), one value per image.

    Attributes:
        fewest: the smallest n for which it is defined.
    """

    fewest: int = 2

    @abstractmethod
    def __call__(self, latents: Tensor, std: float) -> Tensor:
        """(B,) from ``latents`` (B, n, ...), in squared units of them, and summed over latents and elements."""


class LatentMoments(LatentConstraint):
    """n times the sum over elements of mean^2 + (s - std)^2, with the mean and the standard deviation s (unbiased) over
    the n latents: the constraint of the paper's code. (Its text has the variance in the place of s.)"""

    def __call__(self, latents: Tensor, std: float) -> Tensor:
        count = latents.shape[1]
        mean = latents.mean(1, keepdim=True)
        variance = (latents - mean).square().sum(1) / (count - 1)
        spread = (variance + _SMALL * std**2).sqrt()
        return count * (mean[:, 0].square() + (spread - std).square()).flatten(1).sum(1)


class LatentWasserstein(LatentConstraint):
    """n times the sum over elements of the squared 2-Wasserstein distance between the n values and N(0, std^2): the
    sorted values against the mean of the normal distribution on each n-th of its probability."""

    fewest = 1

    def __call__(self, latents: Tensor, std: float) -> Tensor:
        count = latents.shape[1]
        edge = torch.linspace(0, 1, count + 1, dtype=torch.float64)
        density = torch.exp(-0.5 * (2**0.5 * torch.erfinv(2 * edge - 1)).square()) / math.sqrt(2 * math.pi)
        means = std * count * (density[:-1] - density[1:])  # E[v | v within a bin], which minimises W2 to the n values
        spread = std**2 - means.square().mean()  # what n values cannot follow
        target = means.to(latents).view(1, -1, *[1] * (latents.ndim - 2))
        far = (latents.sort(dim=1).values - target).square().flatten(1).sum(1)
        return far + float(spread) * latents[0].numel()


class LatentMMD(LatentConstraint):
    """n times d std^2 times the squared maximum mean discrepancy between the n latents, as points of d elements, and
    N(0, std^2 I), with a Gaussian kernel whose squared bandwidth is d std^2. The normal side is in closed form."""

    fewest = 1

    def __call__(self, latents: Tensor, std: float) -> Tensor:
        points = latents.flatten(2)
        count, size = points.shape[1:]
        variance, width = std**2, size * std**2
        apart = (points[:, :, None] - points[:, None]).square().sum(-1)
        own = torch.exp(-apart / (2 * width)).mean((1, 2))
        across = torch.exp(-points.square().sum(-1) / (2 * (width + variance))).mean(1)
        one, two = ((width / (width + k * variance)) ** (size / 2) for k in (1, 2))
        return count * width * (own - 2 * one * across + two)
