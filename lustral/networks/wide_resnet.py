"""Wide residual networks (Zagoruyko and Komodakis 2016), the pre-activation form that CIFAR victims use."""

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from lustral.networks.builders import announced
from lustral.networks.classifier import Classifier, Stage
from lustral.networks.weights import load_into


class _Block(nn.Module):
    """BN-ReLU-conv-BN-ReLU-dropout-conv with a shortcut, which convolves where the width changes."""

    def __init__(
        self,
        width_in: int,
        width_out: int,
        stride: int,
        dropout: float,
        conv_bias: bool,
        raw_shortcut: bool,
        late_stride: bool,
    ) -> None:
        super().__init__()
        first, second = (1, stride) if late_stride else (stride, 1)
        self.bn1 = nn.BatchNorm2d(width_in)
        self.conv1 = nn.Conv2d(width_in, width_out, 3, first, 1, bias=conv_bias)
        self.bn2 = nn.BatchNorm2d(width_out)
        self.conv2 = nn.Conv2d(width_out, width_out, 3, second, 1, bias=conv_bias)
        self.dropout, self.raw_shortcut = dropout, raw_shortcut
        self.shortcut = nn.Conv2d(width_in, width_out, 1, stride, bias=conv_bias) if width_in != width_out else None

    def forward(self, x: Tensor) -> Tensor:
        activated = F.relu(self.bn1(x))
        out = F.relu(self.bn2(self.conv1(activated)))
        out = self.conv2(F.dropout(out, self.dropout, self.training))
        return out + (x if self.shortcut is None else self.shortcut(x if self.raw_shortcut else activated))


@announced
class WideResNet(Classifier):
    """WRN-``depth``-``width`` in three stages at full, half and quarter resolution.

    28-10 has 36.5 M parameters and 70-16 266.8 M. It computes the same function as RobustBench's ``Standard`` (raw
    images), DiffPure's 70-16 and the authors' own code. In Kim's implementation ("meliketoy"), which GDMP and DAD use,
    the last three options are all true.

    Stages: "block1", "block2", "block3", the outputs of the three stages; "block1.relu2" ..., the second activation in
    the last block of each; and "relu", the last map, whose mean is the input of the head. RobustBench's code calls
    "block1.relu2" of a 28-10 "block1.layer.3.relu2".

    Args:
        depth: 6 n + 4 for n blocks per stage (10, 16, 28, 70 ...).
        width: the widening factor; the stages have 16, 32 and 64 times as many channels.
        num_classes: number of classes.
        channels: 1 or 3.
        image_size: height and width in pixels, a multiple of 4.
        dropout: probability inside each block while training.
        mean: mean of each channel, for the normalisation inside the network.
        std: standard deviation of each channel, for the normalisation inside the network.
        weights: a file written by `save_network`; None leaves the weights random.
        conv_bias: whether the convolutions have biases.
        raw_shortcut: whether a shortcut convolves the block's input instead of the normalised and activated input.
        late_stride: whether the second 3 x 3 convolution of a block has the stride instead of the first.
    """

    def __init__(
        self,
        depth: int = 28,
        width: int = 10,
        num_classes: int = 10,
        channels: int = 3,
        image_size: int = 32,
        dropout: float = 0.0,
        mean: Sequence[float] = (0.0,),
        std: Sequence[float] = (1.0,),
        weights: None | str = None,
        conv_bias: bool = False,
        raw_shortcut: bool = False,
        late_stride: bool = False,
    ) -> None:
        super().__init__(num_classes, (channels, image_size, image_size), mean, std)
        if depth < 10 or (depth - 4) % 6:
            raise ValueError(f"depth is {depth}; a WideResNet's is 6 n + 4: 10, 16, 22, 28, ... 70.")
        self.depth, self.width, self.channels, self.image_size = depth, width, channels, image_size
        self.dropout, self.weights = dropout, weights
        self.conv_bias, self.raw_shortcut, self.late_stride = conv_bias, raw_shortcut, late_stride
        widths = [16, 16 * width, 32 * width, 64 * width]
        blocks = (depth - 4) // 6
        options = (dropout, conv_bias, raw_shortcut, late_stride)
        self.stem = nn.Conv2d(channels, widths[0], 3, 1, 1, bias=conv_bias)
        self.stages = nn.Sequential(
            *(
                nn.Sequential(
                    *(
                        _Block(widths[s + (b > 0)], widths[s + 1], 2 if s and b == 0 else 1, *options)
                        for b in range(blocks)
                    )
                )
                for s in range(3)
            )
        )
        self.norm = nn.BatchNorm2d(widths[3])
        self.head = nn.Linear(widths[3], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.zeros_(self.head.bias)
        load_into(self, weights)

    def logits(self, x: Tensor) -> Tensor:
        features = F.relu(self.norm(self.stages(self.stem(x))))
        return self.head(features.mean(dim=(2, 3)))

    def named_stages(self) -> dict[str, Stage]:
        return wide_stages(self.stages, self.norm, F.relu)


def wide_stages(stages: nn.Sequential, norm: nn.Module, activation: Callable[[Tensor], Tensor]) -> dict[str, Stage]:
    """The named stages of a wide residual network, from its groups of blocks, last normalisation and activation."""
    named = {}
    for number, blocks in enumerate(stages, 1):
        *_, last = blocks.children()
        named[f"block{number}.relu2"] = Stage(last.get_submodule("bn2"), activation)
        named[f"block{number}"] = Stage(blocks)
    return named | {"relu": Stage(norm, activation)}
