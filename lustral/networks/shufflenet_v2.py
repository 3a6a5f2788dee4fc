"""ShuffleNetV2 (Ma et al. 2018), for small images and for those of ImageNet."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lustral.networks.builders import announced
from lustral.networks.classifier import Classifier, Stage
from lustral.networks.weights import load_into

_WIDTHS = {0.5: (48, 96, 192, 1024), 1.0: (116, 232, 464, 1024), 1.5: (176, 352, 704, 1024), 2.0: (244, 488, 976, 2048)}
_BLOCKS = (4, 8, 4)


def _pointwise(width_in: int, width_out: int) -> list[nn.Module]:
    return [nn.Conv2d(width_in, width_out, 1, bias=False), nn.BatchNorm2d(width_out), nn.ReLU()]


def _depthwise(width: int, stride: int) -> list[nn.Module]:
    return [nn.Conv2d(width, width, 3, stride, 1, groups=width, bias=False), nn.BatchNorm2d(width)]


class _Block(nn.Module):
    """Two branches, whose output channels are interleaved.

    In a block that halves the resolution, the input of both branches is all channels; elsewhere each branch takes half
    of them, and the first is the identity.
    """

    def __init__(self, width_in: int, width_out: int, stride: int) -> None:
        super().__init__()
        half = width_out // 2
        self.first, seen = None, half
        if stride > 1:
            self.first, seen = nn.Sequential(*_depthwise(width_in, stride), *_pointwise(width_in, half)), width_in
        self.second = nn.Sequential(*_pointwise(seen, half), *_depthwise(half, stride), *_pointwise(half, half))

    def forward(self, x: Tensor) -> Tensor:
        if self.first is not None:
            halves = self.first(x), self.second(x)
        else:
            kept, changed = x.chunk(2, dim=1)
            halves = kept, self.second(changed)
        return torch.stack(halves, dim=2).flatten(1, 2)


@announced
class ShuffleNetV2(Classifier):
    """ShuffleNetV2; 1,263,854 parameters at scale 1 for ten classes, whatever the stem.

    Stages, as in the paper's table 5: "stage2", "stage3", "stage4" and "conv5", the last map.

    Args:
        scale: factor of the widths: 0.5, 1, 1.5 or 2 (the paper's table 5).
        stem: "small" keeps the resolution, as is common for CIFAR; "large" quarters it, the paper's for 224 pixels.
        num_classes: number of classes.
        channels: 1 or 3.
        image_size: height and width in pixels.
        mean: mean of each channel, for the normalisation inside the network.
        std: standard deviation of each channel, for the normalisation inside the network.
        weights: a file written by `save_network`; None leaves the weights random.
        first_width: channels of the first stage where they are not the paper's: 224 in the scale 2 of "pytorch-cifar".
    """

    def __init__(
        self,
        scale: float = 1.0,
        stem: str = "small",
        num_classes: int = 10,
        channels: int = 3,
        image_size: int = 32,
        mean: Sequence[float] = (0.0,),
        std: Sequence[float] = (1.0,),
        weights: None | str = None,
        first_width: None | int = None,
    ) -> None:
        super().__init__(num_classes, (channels, image_size, image_size), mean, std)
        if scale not in _WIDTHS:
            raise ValueError(f"scale is {scale}; it may be {', '.join(map(str, _WIDTHS))}.")
        if stem not in ("small", "large"):
            raise ValueError(f"stem is {stem!r}; it may be small or large.")
        self.scale, self.stem, self.channels, self.image_size, self.weights = scale, stem, channels, image_size, weights
        if first_width is not None and (first_width < 2 or first_width % 2):
            raise ValueError(f"first_width is {first_width}; it must be an even number from 2 on.")
        self.first_width = first_width
        *widths, last = _WIDTHS[scale]
        widths[0] = first_width or widths[0]
        self.first = nn.Sequential(
            nn.Conv2d(channels, 24, 3, 1 if stem == "small" else 2, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU()
        )
        if stem == "large":
            self.first.append(nn.MaxPool2d(3, 2, 1))
        self.stages, width_in = nn.Sequential(), 24
        for width, count in zip(widths, _BLOCKS, strict=True):
            blocks = [_Block(width_in, width, 2), *(_Block(width, width, 1) for _ in range(count - 1))]
            self.stages.append(nn.Sequential(*blocks))
            width_in = width
        self.last = nn.Sequential(*_pointwise(width_in, last))
        self.head = nn.Linear(last, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        load_into(self, weights)

    def logits(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.stages(self.first(x))).mean(dim=(2, 3)))

    def named_stages(self) -> dict[str, Stage]:
        return {f"stage{number}": Stage(blocks) for number, blocks in enumerate(self.stages, 2)} | {
            "conv5": Stage(self.last)
        }
