"""Distances between images, for consistency losses: one number a pair."""

import math
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.parse import urlparse

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity
from torchvision.models import get_model_weights


class Distance(ABC):
    """How far two images are from each other."""

    @abstractmethod
    def __call__(self, one: Tensor, two: Tensor) -> Tensor:
        """(B,) distances between images (B, C, H, W) in diffusion space."""


class SquaredDistance(Distance):
    """The mean of squared differences over the pixels."""

    def __call__(self, one: Tensor, two: Tensor) -> Tensor:
        return (one - two).square().flatten(1).mean(1)


class PseudoHuber(Distance):
    """sqrt(|a - b|^2 + c^2) - c with the Euclidean norm over the whole image (Song and Dhariwal 2024, equation 9). It
    is no sum over pixels: an element-wise one is another loss.

    Args:
        c: below about this norm the distance is quadratic, above it linear; 0 is the norm itself. None is 0.00054
            sqrt(d) for d pixels and channels: 0.03 for 3 x 32 x 32.

    Raises:
        ValueError: if c is negative.
    """

    def __init__(self, c: None | float = None) -> None:
        if c is not None and c < 0:
            raise ValueError(f"c is {c}; a scale cannot be negative (0 is the norm itself).")
        self.c = c

    def __call__(self, one: Tensor, two: Tensor) -> Tensor:
        c = 0.00054 * math.sqrt(one[0].numel()) if self.c is None else self.c
        squared = (one - two).square().flatten(1).sum(1) + c * c
        # Where c is 0 and the images are equal, the root's derivative is infinite; the minimum's is 0.
        positive = squared > 0
        return torch.where(positive, torch.where(positive, squared, 1.0).sqrt(), 0.0) - c


Net = Literal["alex", "vgg", "squeeze"]
_BACKBONES: dict[Net, str] = {"alex": "alexnet", "vgg": "vgg16", "squeeze": "squeezenet1_1"}


def lpips_network(net: Net) -> nn.Module:
    """The frozen network of LPIPS, the distance of deep features (Zhang et al. 2018), as torchmetrics has it: (B, 3, H,
    W) twice, in [-1, 1], to (B, 1, 1, 1).

    Raises:
        ValueError: if torchvision's ImageNet weights of it are not in torch's cache: nothing is downloaded here.
    """
    if net not in get_args(Net):
        raise ValueError(f"net is {net!r}; it may be {', '.join(get_args(Net))}.")
    url = get_model_weights(_BACKBONES[net])["IMAGENET1K_V1"].url
    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name
    if not file.is_file():
        raise ValueError(f"LPIPS by {net} needs torchvision's weights at {file}: get them from {url}.")
    network: Any = LearnedPerceptualImagePatchSimilarity(net).net
    return network.eval().requires_grad_(False)


def coloured(x: Tensor) -> Tensor:
    """Grey images (B, 1, H, W) as (B, 3, H, W); colour images as they are."""
    return x.expand(-1, 3, -1, -1) if x.shape[1] == 1 else x


class LPIPS(Distance):
    """LPIPS (Zhang et al. 2018) of images brought to 224 pixels (bilinear) if they are smaller than 256, as in the
    authors' code of consistency models.

    Args:
        net: the network whose features are compared; torchvision's ImageNet weights of it must be in torch's cache,
            since nothing is downloaded in a training.

    Raises:
        ValueError: if there is no such network, or its weights are not at hand.
    """

    SMALLER, TO = 256, 224

    def __init__(self, net: Net = "vgg") -> None:
        self.net: Net = net
        self._network = lpips_network(net)

    def __call__(self, one: Tensor, two: Tensor) -> Tensor:
        pair = [coloured(x) for x in (one, two)]
        if one.shape[-1] < self.SMALLER:
            pair = [F.interpolate(x, size=(self.TO, self.TO), mode="bilinear") for x in pair]
        # In float32 under autocast too: the difference of two normalised features is small beside them.
        with torch.autocast(one.device.type, enabled=False):
            return self._network.to(one.device)(*(x.float() for x in pair)).flatten(1)[:, 0]
