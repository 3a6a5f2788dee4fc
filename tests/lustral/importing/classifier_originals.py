"""Published classifiers written out straight, by the names of their authors: what an import is compared with."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.contracts import generator


class Original:
    """Layers called by their names in the original; a layer's random tensors are made when it is first called."""

    def __init__(self, counted: bool = True) -> None:
        self.state: dict[str, Tensor] = {}
        self.counted, self.source = counted, generator()

    def tensor(self, name: str, shape: tuple[int, ...], scale: float, around: float = 0.0) -> Tensor:
        if name not in self.state:
            self.state[name] = around + scale * torch.randn(shape, generator=self.source)
        return self.state[name]

    def conv(
        self, x: Tensor, name: str, width: int, size: int, stride: int = 1, groups: int = 1, bias: bool = False
    ) -> Tensor:
        fan_in = x.shape[1] // groups
        weight = self.tensor(name, (width, fan_in, size, size), (2 / (fan_in * size**2)) ** 0.5)
        shift = self.tensor(name.replace("weight", "bias"), (width,), 0.3) if bias else None
        return F.conv2d(x, weight, shift, stride, size // 2, groups=groups)

    def norm(self, x: Tensor, name: str) -> Tensor:
        shape = (x.shape[1],)
        weight, bias = self.tensor(f"{name}.weight", shape, 0.2, 1.0), self.tensor(f"{name}.bias", shape, 0.2)
        mean = self.tensor(f"{name}.running_mean", shape, 0.2)
        if f"{name}.running_var" not in self.state:
            self.state[f"{name}.running_var"] = 0.5 + torch.rand(shape, generator=self.source)
            if self.counted:
                self.state[f"{name}.num_batches_tracked"] = torch.tensor(7)
        return F.batch_norm(x, mean, self.state[f"{name}.running_var"], weight, bias)

    def linear(self, x: Tensor, name: str, width: int) -> Tensor:
        weight = self.tensor(f"{name}.weight", (width, x.shape[1]), x.shape[1] ** -0.5)
        return F.linear(x, weight, self.tensor(f"{name}.bias", (width,), 0.3))


def trades_wide_resnet(original: Original, x: Tensor, classes: int = 10) -> Tensor:
    """WRN-16-2, as RobustBench and DiffPure write it."""
    x = original.conv(x, "conv1.weight", 16, 3)
    for stage, width in ((1, 32), (2, 64), (3, 128)):
        for block in range(2):
            name, stride = f"block{stage}.layer.{block}", 2 if stage > 1 and block == 0 else 1
            active = F.relu(original.norm(x, f"{name}.bn1"))
            out = original.conv(active, f"{name}.conv1.weight", width, 3, stride)
            out = F.relu(original.norm(out, f"{name}.bn2"))
            out = original.conv(out, f"{name}.conv2.weight", width, 3)
            if block == 0:
                x = original.conv(active, f"{name}.convShortcut.weight", width, 1, stride)
            x = x + out
    return original.linear(F.avg_pool2d(F.relu(original.norm(x, "bn1")), 8).flatten(1), "fc", classes)


def meliketoy_wide_resnet(original: Original, x: Tensor, classes: int = 10) -> Tensor:
    """WRN-16-2 with biases; the second convolution strides, and the shortcut sees the block's raw input."""
    x = original.conv(x, "conv1.weight", 16, 3, bias=True)
    for stage, width in ((1, 32), (2, 64), (3, 128)):
        for block in range(2):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            out = F.relu(original.norm(x, f"{name}.bn1"))
            out = original.conv(out, f"{name}.conv1.weight", width, 3, bias=True)
            out = F.relu(original.norm(out, f"{name}.bn2"))
            out = original.conv(out, f"{name}.conv2.weight", width, 3, stride, bias=True)
            if block == 0:
                x = original.conv(x, f"{name}.shortcut.0.weight", width, 1, stride, bias=True)
            x = x + out
    return original.linear(F.avg_pool2d(F.relu(original.norm(x, "bn1")), 8).flatten(1), "linear", classes)


def functional_wide_resnet(original: Original, x: Tensor) -> Tensor:
    """WRN-16-2 of its inventors: a flat dict, in which a convolution is one name."""
    x = original.conv(x, "conv0", 16, 3)
    for stage, width in ((0, 32), (1, 64), (2, 128)):
        for block in range(2):
            name, stride = f"group{stage}.block{block}", 2 if stage and block == 0 else 1
            active = F.relu(original.norm(x, f"{name}.bn0"))
            out = F.relu(original.norm(original.conv(active, f"{name}.conv0", width, 3, stride), f"{name}.bn1"))
            out = original.conv(out, f"{name}.conv1", width, 3)
            x = out + (original.conv(active, f"{name}.convdim", width, 1, stride) if block == 0 else x)
    return original.linear(F.avg_pool2d(F.relu(original.norm(x, "bn")), 8).flatten(1), "fc", 10)


def _residual(original: Original, x: Tensor, name: str, layers: list[tuple[int, int, int]], option: str) -> Tensor:
    """Convolutions (width, size, stride) with normalisation, and a shortcut by ``option``."""
    out = x
    for number, (width, size, stride) in enumerate(layers, 1):
        out = original.conv(out, f"{name}.conv{number}.weight", width, size, stride)
        out = original.norm(out, f"{name}.bn{number}")
        out = F.relu(out) if number < len(layers) else out
    if out.shape != x.shape and option == "A":
        missing = (out.shape[1] - x.shape[1]) // 2
        x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, missing, missing))
    elif out.shape != x.shape:
        stride = x.shape[2] // out.shape[2]
        short = original.conv(x, f"{name}.shortcut.0.weight", out.shape[1], 1, stride)
        x = original.norm(short, f"{name}.shortcut.1")
    return F.relu(out + x)


def resnet_18_narrow(original: Original, x: Tensor) -> Tensor:
    """Basic blocks with convolutions as shortcuts: ResNet-18 with an eighth of its widths."""
    x = F.relu(original.norm(original.conv(x, "conv1.weight", 8, 3), "bn1"))
    for stage in range(4):
        for block in range(2):
            stride = 2 if stage and block == 0 else 1
            layers = [(8 * 2**stage, 3, stride), (8 * 2**stage, 3, 1)]
            x = _residual(original, x, f"layer{stage + 1}.{block}", layers, "B")
    return original.linear(x.mean((2, 3)), "linear", 10)


def resnet_50_narrow(original: Original, x: Tensor, classes: int = 10) -> Tensor:
    """Bottlenecks: ResNet-50 with an eighth of its widths."""
    x = F.relu(original.norm(original.conv(x, "conv1.weight", 8, 3), "bn1"))
    for stage, blocks in enumerate((3, 4, 6, 3)):
        for block in range(blocks):
            width, stride = 8 * 2**stage, 2 if stage and block == 0 else 1
            layers = [(width, 1, 1), (width, 3, stride), (4 * width, 1, 1)]
            x = _residual(original, x, f"layer{stage + 1}.{block}", layers, "B")
    return original.linear(x.mean((2, 3)), "linear", classes)


def resnet_20(original: Original, x: Tensor) -> Tensor:
    """6 n + 2 layers with padded shortcuts, n = 3."""
    x = F.relu(original.norm(original.conv(x, "conv1.weight", 16, 3), "bn1"))
    for stage in range(3):
        for block in range(3):
            stride = 2 if stage and block == 0 else 1
            layers = [(16 * 2**stage, 3, stride), (16 * 2**stage, 3, 1)]
            x = _residual(original, x, f"layer{stage + 1}.{block}", layers, "A")
    return original.linear(x.mean((2, 3)), "linear", 10)


def mobilenet(original: Original, x: Tensor) -> Tensor:
    x = F.relu(original.norm(original.conv(x, "conv1.weight", 32, 3), "bn1"))
    number = 0
    for expansion, width, blocks, first in (
        *((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2)),
        *((6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)),
    ):
        for block in range(blocks):
            name, inner, stride = f"layers.{number}", expansion * x.shape[1], first if block == 0 else 1
            out = F.relu(original.norm(original.conv(x, f"{name}.conv1.weight", inner, 1), f"{name}.bn1"))
            out = original.conv(out, f"{name}.conv2.weight", inner, 3, stride, groups=inner)
            out = F.relu(original.norm(out, f"{name}.bn2"))
            out = original.norm(original.conv(out, f"{name}.conv3.weight", width, 1), f"{name}.bn3")
            if stride == 1 and x.shape[1] != width:
                short = original.conv(x, f"{name}.shortcut.0.weight", width, 1)
                out = out + original.norm(short, f"{name}.shortcut.1")
            elif stride == 1:
                out = out + x
            x, number = out, number + 1
    x = F.relu(original.norm(original.conv(x, "conv2.weight", 1280, 1), "bn2"))
    return original.linear(F.avg_pool2d(x, 4).flatten(1), "linear", 10)


def shufflenet(original: Original, x: Tensor, widths: Sequence[int] = (48, 96, 192), last: int = 1024) -> Tensor:
    """The small one (scale 0.5), unless told otherwise."""

    def layer(x: Tensor, name: str, number: int, width: int, stride: int = 0) -> Tensor:
        size, groups = (3, width) if stride else (1, 1)
        x = original.conv(x, f"{name}.conv{number}.weight", width, size, max(1, stride), groups)
        x = original.norm(x, f"{name}.bn{number}")
        return x if stride else F.relu(x)

    x = F.relu(original.norm(original.conv(x, "conv1.weight", 24, 3), "bn1"))
    for stage, (width, blocks) in enumerate(zip(widths, (4, 8, 4), strict=True), 1):
        for block in range(blocks):
            name, half = f"layer{stage}.{block}", width // 2
            if block == 0:
                left = layer(layer(x, name, 1, x.shape[1], 2), name, 2, half)
                right = layer(layer(layer(x, name, 3, half), name, 4, half, 2), name, 5, half)
            else:
                left, right = x[:, :half], x[:, half:]
                right = layer(layer(layer(right, name, 1, half), name, 2, half, 1), name, 3, half)
            # Channel c of the left and channel c of the right become neighbours.
            x = torch.cat([left, right], 1)
            x = x[:, [c // 2 + (c % 2) * half for c in range(width)]]
    x = F.relu(original.norm(original.conv(x, "conv2.weight", last, 1), "bn2"))
    return original.linear(F.avg_pool2d(x, 4).flatten(1), "linear", 10)


def swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def _same(original: Original, x: Tensor, name: str, width: int, stride: int) -> Tensor:
    """As JAX's "SAME" has it: as many zeros as the last window needs, the odd one below and on the right."""
    size = x.shape[-1]
    zeros = max(0, (-(-size // stride) - 1) * stride + 3 - size)
    padded = F.pad(x, (zeros // 2, zeros - zeros // 2) * 2)
    weight = original.tensor(f"{name}.weight", (width, x.shape[1], 3, 3), (2 / (9 * x.shape[1])) ** 0.5)
    return F.conv2d(padded, weight, stride=stride)


def deepmind_wide_resnet(original: Original, x: Tensor) -> Tensor:
    """WRN-16-2 of Gowal et al."""
    x = _same(original, x, "init_conv", 16, 1)
    for stage, width in enumerate((32, 64, 128)):
        for block in range(2):
            name, stride = f"layer.{stage}.block.{block}", 2 if stage and block == 0 else 1
            active = swish(original.norm(x, f"{name}.batchnorm_0"))
            out = swish(original.norm(_same(original, active, f"{name}.conv_0", width, stride), f"{name}.batchnorm_1"))
            if block == 0:
                x = original.conv(active, f"{name}.shortcut.weight", width, 1, stride)
            x = x + _same(original, out, f"{name}.conv_1", width, 1)
    return original.linear(swish(original.norm(x, "batchnorm")).mean(dim=(2, 3)), "logits", 10)


def deepmind_preact_resnet(original: Original, x: Tensor) -> Tensor:
    """ResNet-18 of Rebuffi et al., with 8 channels in its first stage."""
    x = _same(original, x, "conv_2d", 8, 1)
    for stage in range(4):
        for block in range(2):
            name, stride, width = f"layer_{stage}.{block}", 2 if stage and block == 0 else 1, 8 * 2**stage
            out = swish(original.norm(x, f"{name}.batchnorm_0"))
            out = _same(original, out, f"{name}.conv_2d_1", width, stride)
            out = _same(original, swish(original.norm(out, f"{name}.batchnorm_1")), f"{name}.conv_2d_2", width, 1)
            x = (_same(original, x, f"{name}.shortcut", width, stride) if stride == 2 else x) + out
    return original.linear(swish(original.norm(x, "batchnorm")).mean(dim=(2, 3)), "logits", 10)


def fast_preact_resnet(original: Original, x: Tensor) -> Tensor:
    """ResNet-18 of Wong et al., with 8 channels in its first stage: raw shortcuts, and nothing after the last block."""
    return original.linear(_preact(original, x, raw=True).mean(dim=(2, 3)), "linear", 10)


def rice_preact_resnet(original: Original, x: Tensor) -> Tensor:
    """ResNet-18 of Rice et al., with 8 channels in its first stage."""
    features = F.relu(original.norm(_preact(original, x, raw=False), "bn"))
    return original.linear(features.mean(dim=(2, 3)), "linear", 10)


def _preact(original: Original, x: Tensor, raw: bool) -> Tensor:
    x = original.conv(x, "conv1.weight", 8, 3)
    for stage in range(4):
        for block in range(2):
            name, stride, width = f"layer{stage + 1}.{block}", 2 if stage and block == 0 else 1, 8 * 2**stage
            active = F.relu(original.norm(x, f"{name}.bn1"))
            out = original.conv(active, f"{name}.conv1.weight", width, 3, stride)
            out = original.conv(F.relu(original.norm(out, f"{name}.bn2")), f"{name}.conv2.weight", width, 3)
            if stride == 2:
                x = original.conv(x if raw else active, f"{name}.shortcut.0.weight", width, 1, 2)
            x = x + out
    return x
