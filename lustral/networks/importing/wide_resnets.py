"""Wide residual networks: RobustBench's, DiffPure's, Kim's ("meliketoy") and those of their inventors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lustral.networks.importing.classifiers import batch_norm, read_state
from lustral.networks.importing.formats import Format
from lustral.networks.importing.options import per_channel
from lustral.networks.importing.reading import count, read_torch, shape, tensors_of
from lustral.networks.importing.rules import Rule, fill, pairs, rule
from lustral.networks.swish_wide_resnet import SwishWideResNet
from lustral.networks.wide_resnet import WideResNet

Channels = float | Sequence[float]


@dataclass(frozen=True)
class WideNaming:
    """The tensor names of a WideResNet in a file.

    Attributes:
        blocks: the prefix of the names of a stage's blocks, for each of the three stages.
        stem, norm, head: names of the parts outside the blocks.
        parts: names of bn1, conv1, bn2, conv2 and shortcut inside a block.
        convolution: the tensors of a convolution: the name here, and the suffix in the file.
        build: the class of the network.
    """

    blocks: tuple[str, str, str]
    stem: str
    norm: str
    head: str
    parts: tuple[str, str, str, str, str]
    convolution: Mapping[str, str]
    build: type[WideResNet] | type[SwishWideResNet] = WideResNet

    def rules(self, network: WideResNet | SwishWideResNet, tensors: Mapping[str, Tensor]) -> list[Rule]:
        rules = self._convolution("stem", self.stem)
        rules += batch_norm("norm", self.norm, tensors) + pairs("head", self.head)
        for stage in range(3):
            for block in range((network.depth - 4) // 6):
                target, source = f"stages.{stage}.{block}", f"{self.blocks[stage]}{block}"
                bn1, conv1, bn2, conv2, shortcut = (f"{source}.{part}" for part in self.parts)
                rules += batch_norm(f"{target}.bn1", bn1, tensors) + self._convolution(f"{target}.conv1", conv1)
                rules += batch_norm(f"{target}.bn2", bn2, tensors) + self._convolution(f"{target}.conv2", conv2)
                if network.get_submodule(target).shortcut is not None:
                    rules += self._convolution(f"{target}.shortcut", shortcut)
        return rules

    def size(self, tensors: Mapping[str, Tensor], file: str) -> tuple[int, int]:
        """Depth and width, inferred from the tensors."""
        weight, conv1 = self.convolution["weight"], self.parts[1]
        widened = shape(tensors, f"{self.blocks[0]}0.{conv1}{weight}", 4, file)[0]
        return 6 * count(tensors, self.blocks[0]) + 4, max(1, widened // 16)

    def ends(self, tensors: Mapping[str, Tensor], file: str) -> tuple[int, int]:
        """The number of classes and the image's channels, inferred from the tensors."""
        classes = shape(tensors, f"{self.head}.weight", 2, file)[0]
        return classes, shape(tensors, f"{self.stem}{self.convolution['weight']}", 4, file)[1]

    def load(self, tensors: Mapping[str, Tensor], file: str, **options: Any) -> WideResNet | SwishWideResNet:
        """A network of the size inferred from the tensors, with these as weights."""
        (depth, width), (classes, channels) = self.size(tensors, file), self.ends(tensors, file)
        network = self.build(depth=depth, width=width, num_classes=classes, channels=channels, **options)
        fill(network, self.rules(network, tensors), tensors, file)
        return network

    def _convolution(self, target: str, source: str) -> list[Rule]:
        return [rule(f"{target}.{ours}", f"{source}{theirs}") for ours, theirs in self.convolution.items()]


TRADES = WideNaming(
    blocks=("block1.layer.", "block2.layer.", "block3.layer."),
    stem="conv1",
    norm="bn1",
    head="fc",
    parts=("bn1", "conv1", "bn2", "conv2", "convShortcut"),
    convolution={"weight": ".weight"},
)
DEEPMIND = WideNaming(
    blocks=("layer.0.block.", "layer.1.block.", "layer.2.block."),
    stem="init_conv",
    norm="batchnorm",
    head="logits",
    parts=("batchnorm_0", "conv_0", "batchnorm_1", "conv_1", "shortcut"),
    convolution={"weight": ".weight"},
    build=SwishWideResNet,
)
_MELIKETOY = WideNaming(
    blocks=("layer1.", "layer2.", "layer3."),
    stem="conv1",
    norm="bn1",
    head="linear",
    parts=("bn1", "conv1", "bn2", "conv2", "shortcut.0"),
    convolution={"weight": ".weight", "bias": ".bias"},
)
_SZAGORUYKO = WideNaming(
    blocks=("group0.block", "group1.block", "group2.block"),
    stem="conv0",
    norm="bn",
    head="fc",
    parts=("bn0", "conv0", "bn1", "conv1", "convdim"),
    convolution={"weight": ""},
)


# Depth and width of the network of each of these formats: others have the same tensor names, but another normalisation.
SIZES = {"robustbench-wrn": (28, 10), "diffpure-wrn": (70, 16)}
_WHOSE = {
    "robustbench-wrn": "RobustBench's Standard, on raw images",
    "diffpure-wrn": "DiffPure's, which normalises its input",
}


def _robustbench(path: Path) -> nn.Module:
    tensors = read_state(path)
    _check(tensors, path.name, "robustbench-wrn")
    return TRADES.load(tensors, path.name)


def _diffpure(path: Path) -> nn.Module:
    tensors = read_state(path)
    _check(tensors, path.name, "diffpure-wrn")
    mean, std = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)
    return TRADES.load(tensors, path.name, mean=mean, std=std, dropout=0.3)


def _check(tensors: Mapping[str, Tensor], file: str, form: str) -> None:
    """Refuse a network of another size than the format's, which would have the same tensor names."""
    found = TRADES.size(tensors, file)
    if found != SIZES[form]:
        size, depth, width = f"{file} is a WRN-{found[0]}-{found[1]}", *SIZES[form]
        for other in SIZES:
            if found == SIZES[other]:
                raise ValueError(f"{size}, the size of {_WHOSE[other]}: choose --format {other}.")
        raise ValueError(
            f"{size}, and --format {form} is for the WRN-{depth}-{width} that is {_WHOSE[form]}: how this one "
            "normalises its input, the file does not tell; choose the format of its authors."
        )
    classes, channels = TRADES.ends(tensors, file)
    if (classes, channels) != (10, 3):
        raise ValueError(
            f"{file} has {classes} classes and {channels} channels, and --format {form} is for a network of CIFAR-10's "
            "10 and 3: check --format."
        )


def _meliketoy(path: Path, *, mean: Channels | None = None, std: Channels | None = None) -> nn.Module:
    tensors = read_state(path)
    classes, _ = _MELIKETOY.ends(tensors, path.name)
    if (mean is None) != (std is None):
        raise ValueError("mean and std belong together: give both with --set, or neither for CIFAR-10's.")
    if mean is None or std is None:
        if classes != 10:
            raise ValueError(
                f"{path.name} has {classes} classes, so it was not trained on CIFAR-10, and the file does not tell how "
                "its images were normalised: add --set mean=(...) std=(...)."
            )
        mean, std = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
    channels = {"mean": per_channel("mean", mean), "std": per_channel("std", std)}
    options = {"conv_bias": True, "raw_shortcut": True, "late_stride": True}
    return _MELIKETOY.load(tensors, path.name, dropout=0.3, **channels, **options)


def _szagoruyko(path: Path, *, mean: Channels, std: Channels) -> nn.Module:
    value = read_torch(path)
    if not isinstance(value, Mapping) or "params" not in value:
        raise ValueError(
            f"{path.name} holds no `params`: it is no model.pt7 of wide-residual-networks; check --format."
        )
    tensors = tensors_of(value["params"], path.name)
    if "stats" in value:  # older files keep the statistics apart
        tensors |= tensors_of(value["stats"], path.name)
    channels = {"mean": per_channel("mean", mean), "std": per_channel("std", std)}
    return _SZAGORUYKO.load(tensors, path.name, **channels)


ROBUSTBENCH_WRN = Format(
    name="robustbench-wrn",
    network="WRN-28-10 on raw images: RobustBench's Standard alone; other models of the zoo normalise in their code",
    file="Standard.pt",
    published="https://github.com/RobustBench/robustbench, model zoo, CIFAR-10, Standard",
    licence="MIT (RobustBench lists a few models that have others)",
    load=_robustbench,
)
DIFFPURE_WRN = Format(
    name="diffpure-wrn",
    network="DiffPure's WRN-70-16 with dropout, CIFAR-10",
    file="wrn-70-16-dropout/weights.pt",
    published="https://github.com/NVlabs/DiffPure, pretrained classifiers",
    licence="NVIDIA Source Code License (non-commercial)",
    load=_diffpure,
)
MELIKETOY_WRN = Format(
    name="meliketoy-wrn",
    network="WRN-d-k of GDMP and DAD, CIFAR-10 unless mean and std are given; its state_dict (the original .t7 holds a "
    "pickled module)",
    file="wide-resnet-28x10.t7",
    published="trained with https://github.com/meliketoy/wide-resnet.pytorch",
    licence="its trainer's (the code is MIT)",
    load=_meliketoy,
)
SZAGORUYKO_WRN = Format(
    name="szagoruyko-wrn",
    network="WRN-d-k as a flat dict of parameters; Lee and Kim's for SVHN takes raw images (mean=0 std=1)",
    file="model.pt7",
    published="trained with https://github.com/szagoruyko/wide-residual-networks",
    licence="its trainer's (the code is BSD 2-clause)",
    load=_szagoruyko,
)
