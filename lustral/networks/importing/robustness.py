"""Checkpoints of the robustness library: Engstrom et al.'s own ResNets, and Salman et al.'s."""

from collections.abc import Mapping
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

from lustral.networks.importing.checkpoints import read_checkpoint
from lustral.networks.importing.cifar_nets import resnet
from lustral.networks.importing.classifiers import COUNTER
from lustral.networks.importing.formats import Format
from lustral.networks.importing.imagenet_classifiers import TORCHVISION_NAMES, fill_timm
from lustral.networks.importing.reading import shape
from lustral.networks.timm_classifier import TimmClassifier


def _robustness(path: Path) -> nn.Module:
    tensors, file = read_checkpoint(path), path.name
    model, attacked = (_below(tensors, prefix) for prefix in ("model.", "attacker.model."))
    rest = {**_below(tensors, "normalizer."), **_below(tensors, "attacker.normalize.")}
    if not model or len(tensors) != len(model) + len(attacked) + 4 or set(rest) != {"new_mean", "new_std"}:
        raise ValueError(
            f"{file} holds no AttackerModel of the robustness library (model, attacker.model, and the normalizer of "
            f"each; it has {', '.join(list(tensors)[:4])} ...): check --format."
        )
    for ours, theirs in ((model, attacked), (_below(tensors, "normalizer."), rest)):
        if ours.keys() != theirs.keys() or not all(torch.equal(ours[n], theirs[n]) for n in ours):
            raise ValueError(f"{file} has two different networks, one to attack and one to ask: it is damaged.")
    mean, std = (_decimals(rest[name]) for name in ("new_mean", "new_std"))
    if "linear.weight" in model:
        return resnet(model, file, mean, std)
    classes = shape(model, "fc.weight", 2, file)[0]
    sizes = {name: tensor.shape for name, tensor in model.items() if not name.endswith(COUNTER)}
    for name in TORCHVISION_NAMES:
        with torch.device("meta"):
            state = timm.create_model(name, num_classes=classes).state_dict()
        if sizes == {key: tensor.shape for key, tensor in state.items() if not key.endswith(COUNTER)}:
            return fill_timm(TimmClassifier(name, classes, 224, mean, std), model, file)
    raise ValueError(f"{file} holds none of the networks {', '.join(TORCHVISION_NAMES)}: check --format.")


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _decimals(values: Tensor) -> tuple[float, ...]:
    """The short decimal numbers that were rounded to the float32 ``values``."""
    short = tuple(float(f"{value:.6g}") for value in values.flatten().tolist())
    same = torch.equal(torch.tensor(short), values.flatten().float())
    return short if same else tuple(values.flatten().tolist())


ROBUSTNESS = Format(
    name="robustness",
    network="a ResNet that the robustness library trained, for CIFAR-10 or ImageNet, with its normalisation",
    file="cifar_linf_8.pt, imagenet_linf_4.pt, resnet50_linf_eps4.0.ckpt",
    published="https://github.com/MadryLab/robustness and https://github.com/microsoft/robust-models-transfer",
    licence="MIT",
    load=_robustness,
)
