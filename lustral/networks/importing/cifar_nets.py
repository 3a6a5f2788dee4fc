"""Small CIFAR networks with the tensor names of "pytorch-cifar" (Liu), which DiffPure's ResNet-50 has too."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from lustral.networks.cifar_resnet import CifarResNet
from lustral.networks.importing.classifiers import batch_norm, read_state
from lustral.networks.importing.formats import Format
from lustral.networks.importing.options import per_channel
from lustral.networks.importing.reading import count, shape
from lustral.networks.importing.rules import Rule, fill, pairs, rule
from lustral.networks.mobilenet_v2 import CifarMobileNetV2
from lustral.networks.shufflenet_v2 import ShuffleNetV2

Channels = float | Sequence[float]


def _convolution(
    target: str, source: str, norm_target: str, norm_source: str, tensors: Mapping[str, Tensor]
) -> list[Rule]:
    """The rules for a convolution without bias and the normalisation after it."""
    return [rule(f"{target}.weight", f"{source}.weight"), *batch_norm(norm_target, norm_source, tensors)]


def _shape(tensors: Mapping[str, Tensor], file: str) -> dict[str, Any]:
    """The arguments of a `CifarResNet`, inferred from the tensors."""
    width, channels = shape(tensors, "conv1.weight", 4, file)[:2]
    shape(tensors, "layer1.0.conv1.weight", 4, file)
    stages = count(tensors, "layer")
    return {
        "blocks": [count(tensors, f"layer{stage + 1}.") for stage in range(stages)],
        "width": width,
        "bottleneck": "layer1.0.conv3.weight" in tensors,
        "shortcut": "conv" if any(".shortcut." in name for name in tensors) else "pad",
        "num_classes": shape(tensors, "linear.weight", 2, file)[0],
        "channels": channels,
    }


def resnet(tensors: Mapping[str, Tensor], file: str, mean: tuple[float, ...], std: tuple[float, ...]) -> CifarResNet:
    """A residual network of the size inferred from the tensors, with these as weights."""
    network = CifarResNet(**_shape(tensors, file), mean=mean, std=std)
    rules = _convolution("stem", "conv1", "norm", "bn1", tensors) + pairs("head", "linear")
    for stage, blocks in enumerate(network.blocks):
        for block in range(blocks):
            target, source = f"stages.{stage}.{block}", f"layer{stage + 1}.{block}"
            rules += _block(network, target, source, 3 if network.bottleneck else 2, tensors)
    fill(network, rules, tensors, file)
    return network


def _block(
    network: CifarResNet | CifarMobileNetV2, target: str, source: str, convolutions: int, tensors: Mapping[str, Tensor]
) -> list[Rule]:
    rules = []
    for i in range(convolutions):
        names = f"{target}.convs.{i}", f"{source}.conv{i + 1}", f"{target}.norms.{i}", f"{source}.bn{i + 1}"
        rules += _convolution(*names, tensors)
    if network.get_submodule(target).shortcut is not None:
        first, second = (f"{source}.shortcut.{i}" for i in range(2))
        rules += _convolution(f"{target}.shortcut.0", first, f"{target}.shortcut.1", second, tensors)
    return rules


def _kuangliu_resnet(path: Path, *, mean: Channels, std: Channels) -> CifarResNet:
    return resnet(read_state(path), path.name, per_channel("mean", mean), per_channel("std", std))


# Many networks have the tensor names of this one, but another normalisation.
RESNET50: dict[str, Any] = {
    "blocks": [3, 4, 6, 3],
    "width": 64,
    "bottleneck": True,
    "shortcut": "conv",
    "num_classes": 10,
    "channels": 3,
}


def _diffpure_resnet50(path: Path) -> CifarResNet:
    tensors = read_state(path)
    found = _shape(tensors, path.name)
    differing = [f"{name} {found[name]} and not {value}" for name, value in RESNET50.items() if found[name] != value]
    if differing:
        raise ValueError(
            f"{path.name} is no CIFAR-10 ResNet-50 like DiffPure's ({', '.join(differing)}), and how it normalises its "
            "input, the file does not tell: choose --format kuangliu-resnet with --set mean=(...) std=(...)."
        )
    return resnet(tensors, path.name, (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616))


def _mobilenet(path: Path, *, mean: Channels, std: Channels) -> CifarMobileNetV2:
    tensors, file = read_state(path), path.name
    network = CifarMobileNetV2(
        num_classes=shape(tensors, "linear.weight", 2, file)[0],
        channels=shape(tensors, "conv1.weight", 4, file)[1],
        mean=per_channel("mean", mean),
        std=per_channel("std", std),
    )
    rules = _convolution("stem", "conv1", "norm", "bn1", tensors) + pairs("head", "linear")
    rules += _convolution("last", "conv2", "last_norm", "bn2", tensors)
    for block in range(len(network.blocks)):
        rules += _block(network, f"blocks.{block}", f"layers.{block}", 3, tensors)
    fill(network, rules, tensors, file)
    return network


def _shufflenet(path: Path, *, mean: Channels, std: Channels) -> ShuffleNetV2:
    tensors, file = read_state(path), path.name
    width = 2 * shape(tensors, "layer1.0.conv2.weight", 4, file)[0]
    if width not in (known := {48: 0.5, 116: 1.0, 176: 1.5, 224: 2.0, 244: 2.0}):
        raise ValueError(
            f"{file} has {width} channels in the first stage of its ShuffleNetV2; known are "
            f"{', '.join(map(str, known))}: check --format."
        )
    network = ShuffleNetV2(
        scale=known[width],
        first_width=224 if width == 224 else None,
        num_classes=shape(tensors, "linear.weight", 2, file)[0],
        channels=shape(tensors, "conv1.weight", 4, file)[1],
        mean=per_channel("mean", mean),
        std=per_channel("std", std),
    )
    rules = _convolution("first.0", "conv1", "first.1", "bn1", tensors) + pairs("head", "linear")
    rules += _convolution("last.0", "conv2", "last.1", "bn2", tensors)
    for stage, blocks in enumerate((4, 8, 4)):
        for block in range(blocks):
            target, source = f"stages.{stage}.{block}", f"layer{stage + 1}.{block}"
            # The branches' layers in the order of the file's numbers; here ReLUs are numbered too.
            layers = [f"{target}.second.{i}" for i in (0, 3, 5)]
            if block == 0:
                layers = [f"{target}.first.{i}" for i in (0, 2)] + layers
            for number, layer in enumerate(layers, 1):
                prefix, _, place = layer.rpartition(".")
                norm = f"{prefix}.{int(place) + 1}"
                rules += _convolution(layer, f"{source}.conv{number}", norm, f"{source}.bn{number}", tensors)
    fill(network, rules, tensors, file)
    return network


_PUBLISHED = "trained with https://github.com/kuangliu/pytorch-cifar"
_LICENCE = "its trainer's (the code is MIT)"

KUANGLIU_RESNET = Format(
    name="kuangliu-resnet",
    network="CIFAR ResNet of any depth; without shortcut tensors it is the narrow form of He et al. (ResNet-56)",
    file="ckpt.pth",
    published=_PUBLISHED,
    licence=_LICENCE,
    load=_kuangliu_resnet,
)
KUANGLIU_MOBILENET = Format(
    name="kuangliu-mobilenetv2",
    network="CIFAR MobileNetV2",
    file="ckpt.pth",
    published=_PUBLISHED,
    licence=_LICENCE,
    load=_mobilenet,
)
KUANGLIU_SHUFFLENET = Format(
    name="kuangliu-shufflenetv2",
    network="CIFAR ShuffleNetV2, also at its scale 2 of 224 channels, which the paper's 244 are not",
    file="ckpt.pth",
    published=_PUBLISHED,
    licence=_LICENCE,
    load=_shufflenet,
)
DIFFPURE_RESNET50 = Format(
    name="diffpure-resnet50",
    network="DiffPure's ResNet-50, CIFAR-10",
    file="resnet-50/weights.pt",
    published="https://github.com/NVlabs/DiffPure, pretrained classifiers",
    licence="NVIDIA Source Code License (non-commercial)",
    load=_diffpure_resnet50,
)
