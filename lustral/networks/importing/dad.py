"""The denoiser of DAD's authors, with the names of the high-level guided denoiser's code."""

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from lustral.networks.dunet import DUNet
from lustral.networks.importing.checkpoints import read_checkpoint
from lustral.networks.importing.classifiers import batch_norm
from lustral.networks.importing.formats import Format
from lustral.networks.importing.options import whole
from lustral.networks.importing.reading import count, shape
from lustral.networks.importing.rules import fill, rule

_DEAD = re.compile(r"(fwd|back)\.\d+\.\d+\.se\.fc\.(0|2)\.weight")
_REDUCTION = 16


def _without_dead(tensors: Mapping[str, Tensor], file: str) -> dict[str, Tensor]:
    """The tensors without those of the squeeze-and-excitation blocks, which the code builds and never calls.

    Raises:
        ValueError: if one is not of the shape that such a block has.
    """
    for name, tensor in tensors.items():
        found = _DEAD.fullmatch(name)
        if found is None:
            continue
        width = len(tensors.get(f"{name.partition('.se.')[0]}.bn.weight", ()))
        inner = width // _REDUCTION
        if tuple(tensor.shape) != ((inner, width) if found[2] == "0" else (width, inner)):
            raise ValueError(
                f"{file} holds {name} of shape {tuple(tensor.shape)} beside {width} channels, which is no unused "
                "squeeze-and-excitation block of DAD's denoiser: check --format."
            )
    return {name: tensor for name, tensor in tensors.items() if not _DEAD.fullmatch(name)}


def _denoiser(path: Path, *, image_size: int = 32) -> DUNet:
    file, image_size = path.name, whole("image_size", image_size)
    tensors = _without_dead(read_checkpoint(path), file)
    channels = shape(tensors, "fwd.0.0.conv.weight", 4, file)[1]
    stages = count(tensors, "fwd.")
    depths = [count(tensors, f"fwd.{stage}.") for stage in range(stages)]
    widths = [shape(tensors, f"fwd.{stage}.0.conv.weight", 4, file)[0] for stage in range(stages)]
    network = DUNet(image_size, channels, widths, depths)
    rules = [rule("last.weight", "final.weight")]
    for ours, theirs, part in (("encoder", "fwd", depths), ("decoder", "back", depths[:-1])):
        for stage, depth in enumerate(part):
            for i in range(depth):
                target, source = f"{ours}.{stage}", f"{theirs}.{stage}.{i}"
                rules.append(rule(f"{target}.{3 * i}.weight", f"{source}.conv.weight"))
                rules += batch_norm(f"{target}.{3 * i + 1}", f"{source}.bn", tensors)
    fill(network, rules, tensors, file)
    return network


DAD_DENOISER = Format(
    name="dad-denoiser",
    network="DAD's DUNET denoiser of any width; its squeeze-and-excitation weights, which are never used, are left out",
    file="CIFAR10_{model}_denoiser_epoch60_alpha0.01_{index}.pth",
    published="https://github.com/tmlr-group/DAD",
    licence="none (all rights reserved)",
    load=_denoiser,
)
