"""DeepMind's wide residual networks: those of the strongest adversarially trained classifiers for CIFAR-10."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from lustral.networks.builders import announced
from lustral.networks.classifier import Classifier, Stage
from lustral.networks.same_conv import SameConv2d
from lustral.networks.weights import load_into
from lustral.networks.wide_resnet import wide_stages


class _Block(nn.Module):
    """BN-Swish-conv-BN-Swish-conv; the shortcut convolves the activated input where the width changes."""

    def __init__(self, width_in: int, width_out: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(width_in)
        self.conv1 = SameConv2d(width_in, width_out, stride)
        self.bn2 = nn.BatchNorm2d(width_out)
        self.conv2 = SameConv2d(width_out, width_out, 1)
        self.shortcut = nn.Conv2d(width_in, width_out, 1, stride, bias=False) if width_in != width_out else None

    def forward(self, x: Tensor) -> Tensor:
        activated = F.silu(self.bn1(x))
        out = self.conv2(F.silu(self.bn2(self.conv1(activated))))
        return out + (x if self.shortcut is None else self.shortcut(activated))


@announced
class SwishWideResNet(Classifier):
    """WRN-``depth``-``width`` of Gowal et al. (2020), "Uncovering the limits of adversarial training".

    It differs from `WideResNet` in its activation, Swish (SiLU) instead of ReLU, and in the padding of convolutions
    with a stride: zeros below and on the right only, as in "SAME" padding. It is used by Gowal et al. (2020, 2021),
    Rebuffi et al. (2021), Pang et al. (2022) and Wang et al. (2023). 28-10 has 36.5 M parameters and 70-16 266.8 M, as
    many as `WideResNet`.

    Stages: `WideResNet`'s, under its names. In DeepMind's code "block1" is "layer.0", "block1.relu2" its last block's
    "relu_1", and "relu" is "relu" too, although it is Swish.

    Args:
        depth: 6 n + 4 for n blocks per stage (28, 34, 70, 106 ...).
        width: the widening factor; the stages have 16, 32 and 64 times as many channels.
        num_classes: number of classes.
        channels: 1 or 3.
        image_size: height and width in pixels, a multiple of 4.
        mean: mean of each channel, for the normalisation inside the network.
        std: standard deviation of each channel, for the normalisation inside the network.
        weights: a file written by `save_network`; None leaves the weights random.
    """

    def __init__(
        self,
        depth: int = 28,
        width: int = 10,
        num_classes: int = 10,
        channels: int = 3,
        image_size: int = 32,
        mean: Sequence[float] = (0.4914, 0.4822, 0.4465),
        std: Sequence[float] = (0.2471, 0.2435, 0.2616),
        weights: None | str = None,
    ) -> None:
        super().__init__(num_classes, (channels, image_size, image_size), mean, std)
        if depth < 10 or (depth - 4) % 6:
            raise ValueError(f"depth is {depth}; a SwishWideResNet's is 6 n + 4: 10, 16, 22, 28, ... 70.")
        if image_size % 4:
            raise ValueError(f"image_size is {image_size}; a SwishWideResNet's is a multiple of 4.")
        self.depth, self.width, self.channels, self.image_size = depth, width, channels, image_size
        self.weights = weights
        widths, blocks = [16, 16 * width, 32 * width, 64 * width], (depth - 4) // 6
        self.stem = SameConv2d(channels, widths[0], 1)
        self.stages = nn.Sequential()
        for stage in range(3):
            layers = [
                _Block(widths[stage + (block > 0)], widths[stage + 1], 2 if stage and block == 0 else 1)
                for block in range(blocks)
            ]
            self.stages.append(nn.Sequential(*layers))
        self.norm = nn.BatchNorm2d(widths[3])
        self.head = nn.Linear(widths[3], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.head.bias)
        load_into(self, weights)

    def logits(self, x: Tensor) -> Tensor:
        features = F.silu(self.norm(self.stages(self.stem(x))))
        return self.head(features.mean(dim=(2, 3)))

    def named_stages(self) -> dict[str, Stage]:
        return wide_stages(self.stages, self.norm, F.silu)
