"""ImageNet classifiers of torchvision and of timm, with the tag that identifies the training."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
from torch import Tensor
from torchvision.models import get_model_weights

from lustral.networks.importing.checkpoints import read_checkpoint
from lustral.networks.importing.classifiers import COUNTER, counter, read_state
from lustral.networks.importing.formats import Format
from lustral.networks.importing.options import per_channel, whole, word
from lustral.networks.importing.reading import existing, sha256
from lustral.networks.importing.rules import fill, rule
from lustral.networks.timm_classifier import TimmClassifier

TORCHVISION_NAMES = (
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "wide_resnet50_2",
    "wide_resnet101_2",
)
"""Names of networks that compute the same function, with the same tensor names, in torchvision and in timm."""


def fill_timm(network: TimmClassifier, tensors: Mapping[str, Tensor], file: str) -> TimmClassifier:
    """``network`` with the tensors of a file that has timm's (or torchvision's) tensor names."""
    rules = []
    for target in network.state_dict():
        make = counter if target.endswith(COUNTER) else lambda target, source, _: rule(target, source)
        rules.append(make(target, target.removeprefix("network."), tensors))
    fill(network, rules, tensors, file)
    return network


def _torchvision(path: Path, *, name: str, tag: str) -> TimmClassifier:
    name, tag = word("name", name), word("tag", tag)
    if name not in TORCHVISION_NAMES:
        raise ValueError(f"--set name is {name!r}; of torchvision's it may be {', '.join(TORCHVISION_NAMES)}.")
    # The names of torchvision's files end in the first digits of the file's hash.
    hashes = {weights.name: Path(weights.url).stem.rpartition("-")[2] for weights in get_model_weights(name)}
    if tag not in hashes:
        raise ValueError(f"--set tag is {tag!r}; torchvision's weights of {name} are {', '.join(hashes)}.")
    digest = sha256(existing(path))
    for other, start in hashes.items():
        if digest.startswith(start) and other != tag:
            raise ValueError(
                f"{path.name} is the file of {name} {other}, not of {tag}: the right one is --set tag={other}."
            )
    return fill_timm(TimmClassifier(name), read_state(path), path.name)


def _timm(
    path: Path,
    *,
    name: str,
    tag: str | None = None,
    num_classes: int | None = None,
    image_size: int | None = None,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    key: str | None = None,
) -> TimmClassifier:
    name = word("name", name)
    own = {"num_classes": num_classes, "image_size": image_size, "mean": mean, "std": std}
    key = None if key is None else word("key", key)
    missing = [option for option, value in own.items() if value is None]
    for option in ("num_classes", "image_size"):
        if own[option] is not None:
            own[option] = whole(option, own[option])
    if not timm.is_model(name):
        raise ValueError(f"--set name is {name!r}, which is no model of timm; see timm.list_models().")
    if tag is None and missing:
        raise ValueError(
            f"--set {missing[0]} is missing: weights of your own need num_classes, image_size, mean and std; timm's "
            f"own need their tag ({_tags(name)}) instead."
        )
    if tag is not None and len(missing) < len(own):
        raise ValueError("--set tag tells the classes, the size and the normalisation: leave the other options out.")
    options = _published(name, word("tag", tag)) if tag is not None else own
    options |= {option: per_channel(option, options[option]) for option in ("mean", "std")}
    return fill_timm(TimmClassifier(name, **options), read_checkpoint(path, key), path.name)


def _published(name: str, tag: str) -> dict[str, Any]:
    """timm's description of its published weights."""
    try:
        config = timm.get_pretrained_cfg(f"{name}.{tag}")
    except RuntimeError:
        config = None
    if config is None:
        raise ValueError(f"--set tag is {tag!r}; timm's weights of {name} are {_tags(name)}.")
    size = config.input_size[-1]
    return {"num_classes": config.num_classes, "image_size": size, "mean": config.mean, "std": config.std}


def _tags(name: str) -> str:
    return ", ".join(full.partition(".")[2] for full in timm.list_pretrained(f"{name}.*")) or "none"


TORCHVISION = Format(
    name="torchvision",
    network="ImageNet ResNet or wide ResNet; tag=IMAGENET1K_V1 (the papers') or IMAGENET1K_V2 (5 points better)",
    file="resnet50-0676ba61.pth",
    published="linked from https://pytorch.org/vision",
    licence="BSD 3-clause",
    load=_torchvision,
)
TIMM = Format(
    name="timm",
    network="any model of timm: its own weights (name=deit_small_patch16_224 tag=fb_in1k) or yours (name=resnet18 "
    "num_classes=10 image_size=32 mean=0.5 std=0.25)",
    file="model.safetensors, or your checkpoint",
    published="https://huggingface.co/timm, or your own training",
    licence="yours, or that on the page of timm's model (Inception-ResNet-v2 and DeiT-S: Apache-2.0)",
    load=_timm,
)
