"""Guidance by LPIPS, the distance of deep features (Zhang et al. 2018), as torchmetrics computes it."""

from pathlib import Path
from typing import Literal, get_args
from urllib.parse import urlparse

import torch
from torch import Tensor, nn
from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity
from torchvision.models import get_model_weights

from lustral.diffusion import RememberedDenoiser, to_diffusion
from lustral.diffusion.inner import inner_gradient
from lustral.purifiers.guidance import Likeness, Reference, Step

Net = Literal["alex", "vgg", "squeeze"]
SMALLEST = 32
"""Pixels of the smallest image that all of its networks take."""
_BACKBONES: dict[Net, str] = {"alex": "alexnet", "vgg": "vgg16", "squeeze": "squeezenet1_1"}


class LPIPSGuidance(Likeness):
    """The gradient of minus LPIPS.

    Args:
        net: the network whose features are compared; torchvision's ImageNet weights of it must be in torch's cache,
            since nothing is downloaded in an evaluation.
        reference: with which image x_t is compared: "noised", "shared" or "clean" (see `MSEGuidance`).
        reference_batch: the divisor of the guidance, at least 1.

    Raises:
        ValueError: if an option is out of its range, or the weights are not at hand; when images are purified, if they
            are smaller than 32 pixels.
    """

    def __init__(self, net: Net = "alex", reference: Reference = "clean", reference_batch: int = 1) -> None:
        super().__init__(reference, reference_batch)
        self._network = perceptual_network(net)
        self.net: Net = net
        self.parts = (self._network,)

    def __call__(self, step: Step, denoise: RememberedDenoiser) -> Tensor:
        if min(step.x_t.shape[-2:]) < SMALLEST:
            raise ValueError(f"LPIPS compares images of {SMALLEST} pixels or more: choose MSEGuidance or SSIMGuidance.")
        target = self.target(step, denoise)

        def likeness(x_t: Tensor) -> Tensor:
            return -_distance(self._network, x_t, target) / self.reference_batch

        return inner_gradient(likeness, step.x_t)


def perceptual_network(net: Net) -> nn.Module:
    """The frozen network of LPIPS with torchvision's and torchmetrics' weights.

    Raises:
        ValueError: if there is no such network, or torchvision's weights are not in torch's cache: nothing is
            downloaded.
    """
    if net not in get_args(Net):
        raise ValueError(f"net is {net!r}; it may be {', '.join(get_args(Net))}.")
    url = get_model_weights(_BACKBONES[net])["IMAGENET1K_V1"].url
    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name
    if not file.is_file():
        raise ValueError(f"LPIPS by {net} needs torchvision's weights at {file}: get them from {url}.")
    return LearnedPerceptualImagePatchSimilarity(net).net.eval().requires_grad_(False)


def perceptual_distance(network: nn.Module, x: Tensor, reference: Tensor) -> Tensor:
    """(B,) LPIPS of images ``x`` and ``reference`` (B, C, H, W) in [0, 1], C = 1 or 3, by a `perceptual_network`.

    Raises:
        ValueError: if they are smaller than 32 pixels.
    """
    if min(x.shape[-2:]) < SMALLEST:
        raise ValueError(f"LPIPS compares images of {SMALLEST} pixels or more, not {x.shape[-2]} x {x.shape[-1]}.")
    return _distance(network, to_diffusion(x), to_diffusion(reference))


def _distance(network: nn.Module, x: Tensor, reference: Tensor) -> Tensor:
    """(B,) LPIPS of images in [-1, 1]."""
    return network(_coloured(x), _coloured(reference)).flatten(1)[:, 0]


def _coloured(x: Tensor) -> Tensor:
    return x.expand(-1, 3, -1, -1) if x.shape[1] == 1 else x
