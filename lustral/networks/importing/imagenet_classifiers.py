"""ImageNet classifiers of torchvision and of timm, with the tag that tells their trainings apart."""

from pathlib import Path

import timm
from torchvision.models import get_model_weights

from lustral.networks.importing.classifiers import COUNTER, counter, read_state
from lustral.networks.importing.formats import Format
from lustral.networks.importing.options import word
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
"""Names that mean the same function, with the same names of tensors, in torchvision and in timm."""


def _fill(network: TimmClassifier, path: Path) -> TimmClassifier:
    tensors, rules = read_state(path), []
    for target in network.state_dict():
        make = counter if target.endswith(COUNTER) else lambda target, source, _: rule(target, source)
        rules.append(make(target, target.removeprefix("network."), tensors))
    fill(network, rules, tensors, path.name)
    return network


def _torchvision(path: Path, *, name: str, tag: str) -> TimmClassifier:
    name, tag = word("name", name), word("tag", tag)
    if name not in TORCHVISION_NAMES:
        raise ValueError(f"--set name is {name!r}; of torchvision's it may be {', '.join(TORCHVISION_NAMES)}.")
    # A file of torchvision ends in the first digits of its own hash.
    hashes = {weights.name: Path(weights.url).stem.rpartition("-")[2] for weights in get_model_weights(name)}
    if tag not in hashes:
        raise ValueError(f"--set tag is {tag!r}; torchvision's weights of {name} are {', '.join(hashes)}.")
    digest = sha256(existing(path))
    for other, start in hashes.items():
        if digest.startswith(start) and other != tag:
            raise ValueError(
                f"{path.name} is the file of {name} {other}, not of {tag}: the right one is --set tag={other}."
            )
    return _fill(TimmClassifier(name), path)


def _timm(path: Path, *, name: str, tag: str) -> TimmClassifier:
    name, tag = word("name", name), word("tag", tag)
    if not timm.is_model(name):
        raise ValueError(f"--set name is {name!r}, which is no model of timm; see timm.list_models().")
    try:
        config = timm.get_pretrained_cfg(f"{name}.{tag}")
    except RuntimeError:
        config = None
    if config is None:
        known = [full.partition(".")[2] for full in timm.list_pretrained(f"{name}.*")]
        raise ValueError(f"--set tag is {tag!r}; timm's weights of {name} are {', '.join(known) or 'none'}.")
    options = {"image_size": config.input_size[-1], "mean": config.mean, "std": config.std}
    return _fill(TimmClassifier(name, config.num_classes, **options), path)


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
    network="any model of timm: inception_resnet_v2 (tag=tf_in1k), deit_small_patch16_224 (tag=fb_in1k)",
    file="model.safetensors",
    published="https://huggingface.co/timm",
    licence="the model's own, on its page (Inception-ResNet-v2 and DeiT-S: Apache-2.0)",
    load=_timm,
)
