"""MobileNetV2 (Sandler et al. 2018) for images of 32 x 32 pixels."""

from collections.abc import Sequence
from itertools import accumulate

import torch.nn.functional as F
from torch import Tensor, nn

from lustral.networks.builders import announced
from lustral.networks.classifier import Classifier, Stage
from lustral.networks.weights import load_into

_STAGES = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""Expansion, width, blocks and stride of each stage: the paper's table 2 with the strides of small images."""


class _Block(nn.Module):
    """Expand, filter each channel, and project linearly; a block that keeps the resolution has a shortcut."""

    def __init__(self, width_in: int, width_out: int, expansion: int, stride: int) -> None:
        super().__init__()
        inner = expansion * width_in
        self.convs = nn.ModuleList(
            [
                nn.Conv2d(width_in, inner, 1, bias=False),
                nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False),
                nn.Conv2d(inner, width_out, 1, bias=False),
            ]
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in (inner, inner, width_out))
        self.stride, self.shortcut = stride, None
        if stride == 1 and width_in != width_out:
            self.shortcut = nn.Sequential(nn.Conv2d(width_in, width_out, 1, bias=False), nn.BatchNorm2d(width_out))

    def forward(self, x: Tensor) -> Tensor:
        out = x
        for number, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            out = norm(conv(F.relu(out) if number else out))
        if self.stride > 1:
            return out
        return out + (x if self.shortcut is None else self.shortcut(x))


@announced
class CifarMobileNetV2(Classifier):
    """MobileNetV2 in the common form for CIFAR: 2,296,922 parameters for ten classes.

    It differs from the paper's network: the stem and the second stage keep the resolution, the first block has an
    expansion layer although its expansion is 1, a block that keeps the resolution and changes the width has a
    convolution as shortcut, and the activation is ReLU instead of ReLU6.

    Stages: "layer1" ... "layer7", the outputs of the paper's seven stages (table 2), which are linear; and "relu", the
    last map, with 1280 channels.

    Args:
        num_classes: number of classes.
        channels: 1 or 3.
        image_size: height and width in pixels.
        mean: mean of each channel, for the normalisation inside the network.
        std: standard deviation of each channel, for the normalisation inside the network.
        weights: a file written by `save_network`; None leaves the weights random.
    """

    def __init__(
        self,
        num_classes: int = 10,
        channels: int = 3,
        image_size: int = 32,
        mean: Sequence[float] = (0.0,),
        std: Sequence[float] = (1.0,),
        weights: None | str = None,
    ) -> None:
        super().__init__(num_classes, (channels, image_size, image_size), mean, std)
        self.channels, self.image_size, self.weights = channels, image_size, weights
        self.stem, self.norm = nn.Conv2d(channels, 32, 3, 1, 1, bias=False), nn.BatchNorm2d(32)
        self.blocks, width_in = nn.Sequential(), 32
        for expansion, width, count, stride in _STAGES:
            for number in range(count):
                self.blocks.append(_Block(width_in, width, expansion, 1 if number else stride))
                width_in = width
        self.last, self.last_norm = nn.Conv2d(width_in, 1280, 1, bias=False), nn.BatchNorm2d(1280)
        self.head = nn.Linear(1280, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        load_into(self, weights)

    def logits(self, x: Tensor) -> Tensor:
        features = self.blocks(F.relu(self.norm(self.stem(x))))
        return self.head(F.relu(self.last_norm(self.last(features))).mean(dim=(2, 3)))

    def named_stages(self) -> dict[str, Stage]:
        ends = accumulate(count for _, _, count, _ in _STAGES)
        named = {f"layer{number}": Stage(self.blocks[end - 1]) for number, end in enumerate(ends, 1)}
        return named | {"relu": Stage(self.last_norm, F.relu)}
