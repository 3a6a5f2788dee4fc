"""Pre-activation residual networks for small images (He et al. 2016b), in the forms of robust classifiers."""

from collections.abc import Sequence

from torch import Tensor, nn

from lustral.networks.builders import announced
from lustral.networks.classifier import Classifier, Stage
from lustral.networks.same_conv import SameConv2d, activation_named
from lustral.networks.weights import load_into

SHORTCUTS = ("raw", "activated", "same")


class _Block(nn.Module):
    """BN-activation-conv-BN-activation-conv, with a shortcut that convolves where the shape changes."""

    def __init__(self, width_in: int, width: int, stride: int, shortcut: str, activation: str) -> None:
        super().__init__()
        same = shortcut == "same"
        self.bn1 = nn.BatchNorm2d(width_in)
        self.conv1 = _convolution(width_in, width, stride, same)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = _convolution(width, width, 1, same)
        self.activation, self.activated_shortcut = activation_named(activation), shortcut == "activated"
        self.shortcut = None
        if (stride, width_in) != (1, width):
            one = nn.Conv2d(width_in, width, 1, stride, bias=False)
            self.shortcut = SameConv2d(width_in, width, stride) if same else one

    def forward(self, x: Tensor) -> Tensor:
        activated = self.activation(self.bn1(x))
        out = self.conv2(self.activation(self.bn2(self.conv1(activated))))
        return out + (x if self.shortcut is None else self.shortcut(activated if self.activated_shortcut else x))


def _convolution(width_in: int, width: int, stride: int, same: bool) -> nn.Conv2d:
    return SameConv2d(width_in, width, stride) if same else nn.Conv2d(width_in, width, 3, stride, 1, bias=False)


@announced
class PreActResNet(Classifier):
    """A pre-activation residual network whose stem keeps the resolution; later stages halve it and double the width.

    * Wong et al. (2020), "Fast is better than free": ``shortcut`` "raw" and no ``last_norm``, 11,171,146 parameters.
    * Rice et al. (2020), l2: ``shortcut`` "activated", 11,172,170 parameters.
    * The ResNet-18 of Gowal et al. (2021), Rebuffi et al. (2021) and Rade et al. (2021): ``shortcut`` "same" and
      ``activation`` "silu", 12,548,426 parameters.

    Stages: "layer1", "layer2", ..., and with ``last_norm`` also "relu", the last map after normalisation and
    ``activation`` (whichever it is).

    Args:
        blocks: residual blocks of each stage.
        width: channels of the first stage.
        shortcut: where the shape changes, "raw" convolves (1 x 1) the block's input, "activated" the input after
            normalisation and activation; "same" is DeepMind's form: a 3 x 3 convolution of the input, and every
            convolution with a stride is padded with zeros below and on the right only.
        activation: "relu" or "silu" (Swish).
        last_norm: whether the features are normalised and activated before their mean is taken.
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
        shortcut: str = "raw",
        activation: str = "relu",
        last_norm: bool = True,
        num_classes: int = 10,
        channels: int = 3,
        image_size: int = 32,
        mean: Sequence[float] = (0.0,),
        std: Sequence[float] = (1.0,),
        weights: None | str = None,
    ) -> None:
        super().__init__(num_classes, (channels, image_size, image_size), mean, std)
        if shortcut not in SHORTCUTS:
            raise ValueError(f"shortcut is {shortcut!r}; it may be {', '.join(SHORTCUTS)}.")
        if not blocks or min(blocks) < 1:
            raise ValueError(
                f"blocks is {list(blocks)}; give the number of blocks of each stage, such as [2, 2, 2, 2]."
            )
        if shortcut == "same" and image_size % 2 ** (len(blocks) - 1):
            raise ValueError(
                f"image_size is {image_size}; with shortcut = same and {len(blocks)} stages it is a multiple of "
                f"{2 ** (len(blocks) - 1)}."
            )
        self.blocks, self.width, self.shortcut, self.activation = list(blocks), width, shortcut, activation
        self.last_norm, self.channels, self.image_size, self.weights = last_norm, channels, image_size, weights
        self._activate = activation_named(activation)
        self.stem = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
        self.stages, width_in = nn.Sequential(), width
        for stage, count in enumerate(blocks):
            layers = []
            for block in range(count):
                stride, wide = 2 if stage and block == 0 else 1, width * 2**stage
                layers.append(_Block(width_in, wide, stride, shortcut, activation))
                width_in = wide
            self.stages.append(nn.Sequential(*layers))
        self.norm = nn.BatchNorm2d(width_in) if last_norm else None
        self.head = nn.Linear(width_in, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        load_into(self, weights)

    def logits(self, x: Tensor) -> Tensor:
        features = self.stages(self.stem(x))
        if self.norm is not None:
            features = self._activate(self.norm(features))
        return self.head(features.mean(dim=(2, 3)))

    def named_stages(self) -> dict[str, Stage]:
        named = {f"layer{number}": Stage(blocks) for number, blocks in enumerate(self.stages, 1)}
        return named if self.norm is None else named | {"relu": Stage(self.norm, self._activate)}
