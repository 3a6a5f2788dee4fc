"""Guidance by LPIPS, the distance of deep features (Zhang et al. 2018), as torchmetrics computes it."""

from pathlib import Path
from typing import Literal, get_args
from urllib.parse import urlparse

import torch
from torch import Tensor
from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity
from torchvision.models import get_model_weights

from lustral.diffusion import RememberedDenoiser
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
        if net not in get_args(Net):
            raise ValueError(f"net is {net!r}; it may be {', '.join(get_args(Net))}.")
        url = get_model_weights(_BACKBONES[net])["IMAGENET1K_V1"].url
        file = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name
        if not file.is_file():
            raise ValueError(f"LPIPS by {net} needs torchvision's weights at {file}: get them from {url}.")
        self.net: Net = net
        self._network = LearnedPerceptualImagePatchSimilarity(net).net.eval().requires_grad_(False)
        self.parts = (self._network,)

    def __call__(self, step: Step, denoise: RememberedDenoiser) -> Tensor:
        if min(step.x_t.shape[-2:]) < SMALLEST:
            raise ValueError(f"LPIPS compares images of {SMALLEST} pixels or more: choose MSEGuidance or SSIMGuidance.")
        target = _coloured(self.target(step, denoise))

        def likeness(x_t: Tensor) -> Tensor:
            return -self._network(_coloured(x_t), target).flatten(1)[:, 0] / self.reference_batch

        return inner_gradient(likeness, step.x_t)


def _coloured(x: Tensor) -> Tensor:
    return x.expand(-1, 3, -1, -1) if x.shape[1] == 1 else x
