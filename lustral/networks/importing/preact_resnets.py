"""Pre-activation ResNets of robust classifiers: pytorch-cifar's names (Fast AT, Rice et al.) and DeepMind's."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from lustral.networks.importing.classifiers import batch_norm
from lustral.networks.importing.reading import count, shape
from lustral.networks.importing.rules import Rule, fill, pairs, rule
from lustral.networks.preact_resnet import PreActResNet


@dataclass(frozen=True)
class PreActNaming:
    """The tensor names of a PreActResNet in a file, and which of its forms it is.

    Attributes:
        stem, norm, head: names of the parts outside the blocks.
        stage: the prefix of the names of a stage's blocks, for each of the four stages.
        parts: names of bn1, conv1, bn2, conv2 and shortcut inside a block.
        shortcut, activation, last_norm: options of `PreActResNet`.
    """

    stem: str
    norm: str
    head: str
    stages: tuple[str, str, str, str]
    parts: tuple[str, str, str, str, str]
    shortcut: str
    activation: str
    last_norm: bool

    def layers(self, tensors: Mapping[str, Tensor]) -> int:
        """The depth as names tell it: 18 for two blocks per stage."""
        return 2 + 2 * sum(count(tensors, stage) for stage in self.stages)

    def load(
        self, tensors: Mapping[str, Tensor], file: str, *, mean: Sequence[float], std: Sequence[float]
    ) -> PreActResNet:
        """A network of the size inferred from the tensors, with these as weights."""
        width, channels = shape(tensors, f"{self.stem}.weight", 4, file)[:2]
        network = PreActResNet(
            blocks=[max(1, count(tensors, stage)) for stage in self.stages],
            width=width,
            shortcut=self.shortcut,
            activation=self.activation,
            last_norm=self.last_norm,
            num_classes=shape(tensors, f"{self.head}.weight", 2, file)[0],
            channels=channels,
            mean=mean,
            std=std,
        )
        fill(network, self._rules(network, tensors), tensors, file)
        return network

    def _rules(self, network: PreActResNet, tensors: Mapping[str, Tensor]) -> list[Rule]:
        rules = [rule("stem.weight", f"{self.stem}.weight"), *pairs("head", self.head)]
        rules += batch_norm("norm", self.norm, tensors) if self.last_norm else []
        for stage, blocks in enumerate(network.blocks):
            for block in range(blocks):
                target, source = f"stages.{stage}.{block}", f"{self.stages[stage]}{block}"
                bn1, conv1, bn2, conv2, shortcut = (f"{source}.{part}" for part in self.parts)
                rules += batch_norm(f"{target}.bn1", bn1, tensors) + batch_norm(f"{target}.bn2", bn2, tensors)
                rules += pairs(f"{target}.conv1", conv1, ["weight"]) + pairs(f"{target}.conv2", conv2, ["weight"])
                if network.get_submodule(target).shortcut is not None:
                    rules += pairs(f"{target}.shortcut", shortcut, ["weight"])
        return rules


def _kuangliu(shortcut: str, last_norm: bool) -> PreActNaming:
    return PreActNaming(
        stem="conv1",
        norm="bn",
        head="linear",
        stages=("layer1.", "layer2.", "layer3.", "layer4."),
        parts=("bn1", "conv1", "bn2", "conv2", "shortcut.0"),
        shortcut=shortcut,
        activation="relu",
        last_norm=last_norm,
    )


FAST_AT = _kuangliu("raw", last_norm=False)
RICE = _kuangliu("activated", last_norm=True)
DEEPMIND_PREACT = PreActNaming(
    stem="conv_2d",
    norm="batchnorm",
    head="logits",
    stages=("layer_0.", "layer_1.", "layer_2.", "layer_3."),
    parts=("batchnorm_0", "conv_2d_1", "batchnorm_1", "conv_2d_2", "shortcut"),
    shortcut="same",
    activation="silu",
    last_norm=True,
)
