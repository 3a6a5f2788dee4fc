"""Adversarially trained classifiers, by their names in RobustBench's model zoo."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lustral.networks.importing.checkpoints import read_checkpoint
from lustral.networks.importing.cifar_nets import resnet
from lustral.networks.importing.formats import Format
from lustral.networks.importing.imagenet_classifiers import fill_timm
from lustral.networks.importing.options import word
from lustral.networks.importing.preact_resnets import DEEPMIND_PREACT, FAST_AT, RICE, PreActNaming
from lustral.networks.importing.reading import count, without_prefix
from lustral.networks.importing.wide_resnets import DEEPMIND, TRADES, WideNaming
from lustral.networks.timm_classifier import IMAGENET_MEAN, IMAGENET_STD, TimmClassifier

Channels = Sequence[float]
Tensors = Mapping[str, Tensor]

RAW = ((0.0,), (1.0,))
SIGNED = ((0.5,), (0.5,))
CIFAR10 = ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616))
ENGSTROM = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
AUGUSTIN = (
    (0.4913997551666284, 0.48215855929893703, 0.4465309133731618),
    (0.24703225141799082, 0.24348516474564, 0.26158783926049628),
)
RONY = ((0.491, 0.482, 0.447), (0.247, 0.243, 0.262))
IMAGENET = (IMAGENET_MEAN, IMAGENET_STD)


class _Model(NamedTuple):
    """How a model of the zoo is built from its tensors, its expected size, and its normalisation."""

    load: Callable[..., nn.Module]
    size: tuple[int | str, ...]
    normalisation: tuple[Channels, Channels]


# Families -----------------------------------------------------------------------------------------------------------


def _wide(naming: WideNaming) -> Callable[..., nn.Module]:
    def load(tensors: Tensors, file: str, size: tuple[int, int], mean: Channels, std: Channels) -> nn.Module:
        _same_size(file, "WRN", naming.size(tensors, file), size)
        return naming.load(_without_sub_block(tensors, file), file, mean=mean, std=std)

    return load


def _resnet(tensors: Tensors, file: str, size: tuple[int, ...], mean: Channels, std: Channels) -> nn.Module:
    convolutions = count(tensors, "layer1.0.conv")
    layers = sum(count(tensors, f"layer{stage}.") for stage in range(1, 5))
    _same_size(file, "ResNet", (2 + convolutions * layers,), size)
    return resnet(tensors, file, tuple(mean), tuple(std))


def _preact(naming: PreActNaming) -> Callable[..., nn.Module]:
    def load(tensors: Tensors, file: str, size: tuple[int, ...], mean: Channels, std: Channels) -> nn.Module:
        _same_size(file, "PreActResNet", (naming.layers(tensors),), size)
        return naming.load(tensors, file, mean=mean, std=std)

    return load


def _timm(image_size: int) -> Callable[..., nn.Module]:
    def load(tensors: Tensors, file: str, size: tuple[str], mean: Channels, std: Channels) -> nn.Module:
        network = TimmClassifier(size[0], 1000, image_size, mean, std)
        return fill_timm(network, tensors, file)

    return load


_TRADES, _DEEPMIND = _wide(TRADES), _wide(DEEPMIND)
_DEEPMIND_R18, _FAST_AT, _RICE = _preact(DEEPMIND_PREACT), _preact(FAST_AT), _preact(RICE)


# RobustBench --------------------------------------------------------------------------------------------------------


def _models(load: Callable[..., nn.Module], normalisation: tuple[Channels, Channels], **sizes: tuple) -> dict:
    return {name: _Model(load, size, normalisation) for name, size in sizes.items()}


_LINF = {
    **_models(
        *(_DEEPMIND, CIFAR10),
        Gowal2020Uncovering_28_10_extra=(28, 10),
        Gowal2020Uncovering_34_20=(34, 20),
        Gowal2020Uncovering_70_16=(70, 16),
        Gowal2020Uncovering_70_16_extra=(70, 16),
        Gowal2021Improving_28_10_ddpm_100m=(28, 10),
        Gowal2021Improving_70_16_ddpm_100m=(70, 16),
        Pang2022Robustness_WRN28_10=(28, 10),
        Pang2022Robustness_WRN70_16=(70, 16),
        Rade2021Helper_ddpm=(28, 10),
        Rade2021Helper_extra=(34, 10),
        Rebuffi2021Fixing_28_10_cutmix_ddpm=(28, 10),
        Rebuffi2021Fixing_70_16_cutmix_ddpm=(70, 16),
        Rebuffi2021Fixing_70_16_cutmix_extra=(70, 16),
        Rebuffi2021Fixing_106_16_cutmix_ddpm=(106, 16),
        **{"Wang2023Better_WRN-28-10": (28, 10), "Wang2023Better_WRN-70-16": (70, 16)},
    ),
    **_models(
        *(_DEEPMIND_R18, CIFAR10),
        Gowal2021Improving_R18_ddpm_100m=(18,),
        Rade2021Helper_R18_ddpm=(18,),
        Rade2021Helper_R18_extra=(18,),
        Rebuffi2021Fixing_R18_ddpm=(18,),
    ),
    **_models(
        *(_TRADES, RAW),
        Carmon2019Unlabeled=(28, 10),
        Cui2020Learnable_34_10=(34, 10),
        Cui2020Learnable_34_20=(34, 20),
        Huang2020Self=(34, 10),
        Sehwag2020Hydra=(28, 10),
        Sehwag2021Proxy=(34, 10),
        Sitawarin2020Improving=(34, 10),
        Wang2020Improving=(28, 10),
        Wu2020Adversarial=(34, 10),
        Wu2020Adversarial_extra=(28, 10),
        Zhang2019Theoretically=(34, 10),
        Zhang2019You=(34, 10),
        Zhang2020Attacks=(34, 10),
        Zhang2020Geometry=(28, 10),
    ),
    **_models(_TRADES, CIFAR10, Rice2020Overfitting=(34, 20), Chen2020Efficient=(34, 10)),
    **_models(_TRADES, SIGNED, Hendrycks2019Using=(28, 10)),
    **_models(_resnet, ENGSTROM, Engstrom2019Robustness=(50,)),
    **_models(_resnet, RAW, Sehwag2021Proxy_R18=(18,)),
    **_models(_FAST_AT, CIFAR10, Wong2020Fast=(18,)),
}
_L2 = {
    **_models(
        *(_DEEPMIND, CIFAR10),
        Gowal2020Uncovering=(70, 16),
        Gowal2020Uncovering_extra=(70, 16),
        Rebuffi2021Fixing_28_10_cutmix_ddpm=(28, 10),
        Rebuffi2021Fixing_70_16_cutmix_ddpm=(70, 16),
        Rebuffi2021Fixing_70_16_cutmix_extra=(70, 16),
        **{"Wang2023Better_WRN-28-10": (28, 10), "Wang2023Better_WRN-70-16": (70, 16)},
    ),
    **_models(_DEEPMIND_R18, CIFAR10, Rebuffi2021Fixing_R18_cutmix_ddpm=(18,), Rade2021Helper_R18_ddpm=(18,)),
    **_models(_TRADES, RAW, Sehwag2021Proxy=(34, 10), Wu2020Adversarial=(34, 10)),
    **_models(_TRADES, AUGUSTIN, Augustin2020Adversarial_34_10=(34, 10), Augustin2020Adversarial_34_10_extra=(34, 10)),
    **_models(_TRADES, RONY, Rony2019Decoupling=(28, 10)),
    **_models(_resnet, AUGUSTIN, Augustin2020Adversarial=(50,)),
    **_models(_resnet, ENGSTROM, Engstrom2019Robustness=(50,)),
    **_models(_resnet, RAW, Sehwag2021Proxy_R18=(18,)),
    **_models(_RICE, CIFAR10, Rice2020Overfitting=(18,)),
}
_IMAGENET = {
    **_models(_timm(224), IMAGENET, Engstrom2019Robustness=("resnet50",), Salman2020Do_R50=("resnet50",)),
    **_models(_timm(224), IMAGENET, Salman2020Do_R18=("resnet18",), Salman2020Do_50_2=("wide_resnet50_2",)),
    **_models(_timm(288), IMAGENET, Wong2020Fast=("resnet50",)),
}
ZOO: dict[tuple[str, str], dict[str, _Model]] = {
    ("cifar10", "Linf"): _LINF,
    ("cifar10", "L2"): _L2,
    ("imagenet", "Linf"): _IMAGENET,
}
"""The models of `--format robustbench`: by data set and threat model, and by their names in the zoo."""

_NORMALISERS = (("mu", "sigma"), ("mean", "std"), ("normalize.mean", "normalize.std"))


def _robustbench(path: Path, *, name: str, dataset: str, threat_model: str) -> nn.Module:
    name, dataset, threat_model = word("name", name), word("dataset", dataset), word("threat_model", threat_model)
    if (dataset, threat_model) not in ZOO:
        pairs_known = ", ".join(f"dataset={data} threat_model={threat}" for data, threat in ZOO)
        raise ValueError(f"--set dataset={dataset} threat_model={threat_model}: they may be {pairs_known}.")
    known = ZOO[dataset, threat_model]
    if name not in known:
        raise ValueError(f"--set name is {name!r}; of {dataset}, {threat_model} it may be {', '.join(sorted(known))}.")
    load, size, (mean, std) = known[name]
    tensors = without_prefix(read_checkpoint(path), "model.")
    # The tensors of a wrapped network's normaliser do not have the prefix "model.".
    tensors = without_prefix(_without_normaliser(tensors, path.name, name, mean, std), "model.")
    return load(tensors, path.name, size, mean, std)


def _without_normaliser(tensors: Tensors, file: str, name: str, mean: Channels, std: Channels) -> dict[str, Tensor]:
    """``tensors`` without those of a normaliser, which must agree with the model's known normalisation."""
    found = [place for place in (p for pair in _NORMALISERS for p in pair) if place in tensors]
    for place in found:
        wanted = torch.tensor(mean if place in [m for m, _ in _NORMALISERS] else std)
        given = tensors[place].flatten().float()
        if given.numel() not in (1, 3) or not torch.allclose(given, wanted.expand_as(given), rtol=0, atol=1e-6):
            raise ValueError(
                f"{file} says {place} = {given.tolist()[:3]}, but {name} has {wanted.tolist()}: give the name of this "
                "file's own model (--set name)."
            )
    return {name: tensor for name, tensor in tensors.items() if name not in found}


def _without_sub_block(tensors: Tensors, file: str) -> dict[str, Tensor]:
    """``tensors`` without ``sub_block1``: TRADES's code makes this copy of the first stage and never calls it. Its
    names and shapes must be those of the first stage."""
    dead = {name for name in tensors if name.startswith("sub_block1.")}
    twins = {name: name.replace("sub_block1.", "block1.", 1) for name in dead}
    alike = {name.removeprefix("block1.") for name in tensors if name.startswith("block1.")}
    strange = [n for n, twin in twins.items() if twin not in tensors or tensors[n].shape != tensors[twin].shape]
    if dead and (strange or len(alike) != len(dead)):
        raise ValueError(f"{file} has a sub_block1 that is no copy of block1: it is no model of TRADES's form.")
    return {name: tensor for name, tensor in tensors.items() if name not in dead}


def _same_size(file: str, kind: str, found: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    if found != wanted:
        names = [f"{kind}-{'-'.join(map(str, size))}" for size in (found, wanted)]
        raise ValueError(f"{file} holds a {names[0]}, but the model of that name is a {names[1]}: check --set name.")


ROBUSTBENCH = Format(
    name="robustbench",
    network="an adversarially trained model by its name in the zoo, such as name=Rebuffi2021Fixing_70_16_cutmix_extra "
    "dataset=cifar10 threat_model=Linf",
    file="<name>.pt, or the file of the model's authors",
    published="https://github.com/RobustBench/robustbench, model zoo",
    licence="MIT, but Apache-2.0 for Gowal2020*, Rebuffi2021* and Hendrycks2019, and BSD 3-clause for Rony2019",
    load=_robustbench,
)
