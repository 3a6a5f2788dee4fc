"""Residual networks for small images: the CIFAR variants of He et al. (2016), narrow, wide and with bottlenecks."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from lustral.networks.builders import announced
from lustral.networks.classifier import Classifier, Stage
from lustral.networks.weights import load_into


class _Block(nn.Module):
    """Two 3 x 3 convolutions, or a bottleneck of 1 x 1, 3 x 3 and 1 x 1 with four times the width at its end."""

    def __init__(self, width_in: int, width: int, stride: int, bottleneck: bool, shortcut: str) -> None:
        super().__init__()
        width_out = 4 * width if bottleneck else width
        if bottleneck:
            shapes = [(width_in, width, 1, 1), (width, width, 3, stride), (width, width_out, 1, 1)]
        else:
            shapes = [(width_in, width, 3, stride), (width, width, 3, 1)]
        self.convs = nn.ModuleList(nn.Conv2d(i, o, k, s, k // 2, bias=False) for i, o, k, s in shapes)
        self.norms = nn.ModuleList(nn.BatchNorm2d(o) for _, o, _, _ in shapes)
        self.stride, self.padding = stride, (width_out - width_in) // 2
        self.shortcut = None
        if shortcut == "conv" and (stride, width_in) != (1, width_out):
            conv = nn.Conv2d(width_in, width_out, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(width_out))

    def forward(self, x: Tensor) -> Tensor:
        out = x
        for number, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            out = norm(conv(F.relu(out) if number else out))
        if self.shortcut is not None:
            x = self.shortcut(x)
        elif self.stride > 1 or self.padding:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.padding, self.padding))
        return F.relu(out + x)


@announced
class CifarResNet(Classifier):
    """A residual network whose stem keeps the resolution; every stage after the first halves it and doubles the width.

    * ResNet-18 of the common wide CIFAR form: the defaults, 11,173,962 parameters for ten classes.
    * ResNet-50 of that form: ``blocks`` (3, 4, 6, 3) and ``bottleneck``, 23,520,842 parameters (DiffPure's).
    * ResNet-56 of He et al. (section 4.2, 6 n + 2 layers): ``blocks`` (9, 9, 9), ``width`` 16 and ``shortcut`` "pad",
      the paper's choice for CIFAR (its option A), 853,018 parameters; "conv" (option B) makes them 855,770.

    Stages: "layer1", "layer2", ...; the mean of the last map is the input of the head.

    Args:
        blocks: residual blocks of each stage.
        width: channels of the first stage (a quarter of its output with bottlenecks).
        bottleneck: blocks of three convolutions instead of two.
        shortcut: where the shape changes, "conv" convolves (1 x 1, with normalisation) and "pad" takes every second
            pixel and adds channels of zeros, half of them before and half behind.
        num_classes: number of classes.
        channels: 1 or 3.
        image_size: height and width in pixels.
        mean: mean of each channel, for the normalisation inside the network.
        std: standard deviation of each channel, for the normalisation inside the network.
        weights: a file written by `save_network`; None leaves the weights random.
    """

    def __init__(
        self,
        blocks: Sequence[int] = (2, 2, 2, 2),
        width: int = 64,
        bottleneck: bool = False,
        shortcut: str = "conv",
        num_classes: int = 10,
        channels: int = 3,
        image_size: int = 32,
        mean: Sequence[float] = (0.0,),
        std: Sequence[float] = (1.0,),
        weights: None | str = None,
    ) -> None:
        super().__init__(num_classes, (channels, image_size, image_size), mean, std)
        if shortcut not in ("conv", "pad"):
            raise ValueError(f"shortcut is {shortcut!r}; it may be conv or pad.")
        if not blocks or min(blocks) < 1:
            raise ValueError(
                f"blocks is {list(blocks)}; give the number of blocks of each stage, such as [2, 2, 2, 2]."
            )
        self.blocks, self.width, self.bottleneck, self.shortcut = list(blocks), width, bottleneck, shortcut
        self.channels, self.image_size, self.weights = channels, image_size, weights
        self.stem = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.stages, width_in = nn.Sequential(), width
        for stage, count in enumerate(blocks):
            layers = []
            for block in range(count):
                stride = 2 if stage and block == 0 else 1
                layers.append(_Block(width_in, width * 2**stage, stride, bottleneck, shortcut))
                width_in = width * 2**stage * (4 if bottleneck else 1)
            self.stages.append(nn.Sequential(*layers))
        self.head = nn.Linear(width_in, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        load_into(self, weights)

    def logits(self, x: Tensor) -> Tensor:
        return self.head(self.stages(F.relu(self.norm(self.stem(x)))).mean(dim=(2, 3)))

    def named_stages(self) -> dict[str, Stage]:
        return {f"layer{number}": Stage(blocks) for number, blocks in enumerate(self.stages, 1)}
