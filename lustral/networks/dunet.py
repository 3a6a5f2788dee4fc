"""The DUNet-like image denoiser of DAD, from the family of the high-level guided denoiser (Liao et al. 2018)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lustral.networks.builders import announced
from lustral.networks.weights import load_into, load_network


@announced
class DUNet(nn.Module):
    """An image plus the output of a U-Net of plain convolutions: 11,033,984 parameters with the defaults.

    An encoder stage is a number of (3x3 convolution, batch normalisation, ReLU), the first one with stride 2 from the
    second stage on. The decoder has the same stages but the deepest, from the bottom up: upsampling (bilinear) to the
    size of the encoder's stage, that stage's output beside it, and as many convolutions. A last 1x1 convolution without
    bias gives what is added to the image. **The sum is not clipped**, so it may leave [0, 1].

    While training, batch normalisation couples the images of a batch; in eval mode every image is by itself. (DAD's
    released attack leaves it in training mode; the evaluation here refuses that.)

    Args:
        image_size: height and width in pixels; each stage but the first halves them, rounded up.
        channels: of the image.
        widths: channels of each stage.
        depths: convolutions in each stage.
        weights: a file written by `save_network`; None leaves the weights random.

    Raises:
        ValueError: if widths and depths differ in number or are fewer than two, or a number is below 1.
    """

    def __init__(
        self,
        image_size: int = 32,
        channels: int = 3,
        widths: Sequence[int] = (64, 128, 256, 256, 256),
        depths: Sequence[int] = (2, 3, 3, 3, 3),
        weights: None | str = None,
    ) -> None:
        super().__init__()
        if len(widths) != len(depths) or len(widths) < 2:
            raise ValueError(
                f"widths has {len(widths)} entries and depths {len(depths)}; give one each for at least 2 stages."
            )
        if min(image_size, channels, *widths, *depths) < 1:
            raise ValueError(
                f"image_size is {image_size}, channels {channels}, widths {list(widths)}, depths {list(depths)}; all "
                "must be at least 1."
            )
        self.image_size, self.channels, self.weights = image_size, channels, weights
        self.widths, self.depths = list(widths), list(depths)
        self.image_shape = (channels, image_size, image_size)
        before = [channels, *widths[:-1]]
        self.encoder = nn.ModuleList(
            _stage(into, width, depth, stride=1 if number == 0 else 2)
            for number, (into, width, depth) in enumerate(zip(before, widths, depths, strict=True))
        )
        # Stage k of the decoder has the size of stage k of the encoder, and is fed by stage k + 1.
        self.decoder = nn.ModuleList(
            _stage(widths[k] + widths[k + 1], widths[k], depths[k]) for k in range(len(widths) - 1)
        )
        self.last = nn.Conv2d(widths[0], channels, 1, bias=False)
        load_into(self, weights)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W), not clipped, from images (B, C, H, W) with values around [0, 1]."""
        hidden, skips = x, list[Tensor]()
        for stage in self.encoder:
            hidden = stage(hidden)
            skips.append(hidden)
        for stage, skip in zip(reversed(self.decoder), reversed(skips[:-1]), strict=True):
            up = F.interpolate(hidden, skip.shape[2:], mode="bilinear", align_corners=False)
            hidden = stage(torch.cat((up, skip), dim=1))
        return x + self.last(hidden)


def _stage(into: int, width: int, depth: int, stride: int = 1) -> nn.Sequential:
    """``depth`` times convolution, normalisation and ReLU; the first convolution has the ``stride``."""
    layers = list[nn.Module]()
    for number in range(depth):
        first = number == 0
        layers += [
            nn.Conv2d(into if first else width, width, 3, stride if first else 1, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers)


def load_image_denoiser(weights: str) -> DUNet:
    """Rebuild the image denoiser of a weights file (use as a ``class_path``).

    Raises:
        ValueError: if the file holds another kind of network.
    """
    network = load_network(weights)
    if not isinstance(network, DUNet):
        raise ValueError(
            f"{weights} holds a {type(network).__name__}, which is no DUNet: name the weights of a recipe "
            "configs/train/*_denoiser.yaml, or import DAD's (python cli.py import --format dad-denoiser)."
        )
    return network
