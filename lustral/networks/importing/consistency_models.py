"""The 64-pixel U-Net of OpenAI's consistency_models (Song et al. 2023): ``cd_imagenet64_lpips.pt``, its teacher
``edm_imagenet64_ema.pt``, and unconditional ones trained with that code, such as CMAP's ``model200000.pt``.

It is guided-diffusion's U-Net without a learned variance, with attention always in the new order. A class is a row that
is added to the time embedding. The imported network has one class for all images or none, so the row is added to the
last bias of that embedding, which gives the same function.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from torch import Tensor

from lustral.networks.adm import ADMDenoiser
from lustral.networks.importing.adm_layout import CLASSES, build, rules
from lustral.networks.importing.formats import Format
from lustral.networks.importing.options import whole
from lustral.networks.importing.reading import read_torch, shape, tensors_of
from lustral.networks.importing.rules import Rule, fill, rule

Kind = Literal["consistency", "edm"]

_BIAS = "time_embed.2.bias"


def load(
    path: Path,
    *,
    preconditioning: Kind,
    label: int | Literal["unconditional"] | None = None,
    image_size: int = 64,
    head_width: int = 64,
) -> ADMDenoiser:
    """The network of a file of consistency_models, whose defaults are those of ImageNet at 64 pixels.

    Args:
        path: the file, a state dict.
        preconditioning: "consistency" for consistency models, "edm" for their teachers, which have the same tensors.
        label: for a class-conditional network, the class that is used for every image (0 ... 999), or "unconditional"
            to leave the class out, for which the published networks were not trained. None for a network without
            classes.
        image_size: height and width in pixels.
        head_width: channels of an attention head (``num_head_channels``).
    """
    if preconditioning not in get_args(Kind):
        raise ValueError(f"preconditioning is {preconditioning!r}; it may be {', '.join(get_args(Kind))}.")
    image_size, head_width = whole("image_size", image_size), whole("head_width", head_width)
    tensors, file = tensors_of(read_torch(path), path.name), path.name
    network = build(tensors, file, image_size, {"head_width": head_width, "preconditioning": preconditioning})
    if network.learned_variance:
        raise ValueError(f"{file} has learned a variance, which consistency_models does not: check --format.")
    if shape(tensors, "input_blocks.1.0.emb_layers.1.weight", 2, file)[0] == network.base_channels:  # and not twice
        raise ValueError(
            f"{file} adds the time without scaling by it, as OpenAI's LSUN models of 256 pixels do, which are not "
            "known here: import one of ImageNet, or one trained with use_scale_shift_norm."
        )
    row = _row(tensors, label, network, file)
    fill(network, _rules(network, CLASSES in tensors, row), tensors, file)
    return network


def _row(tensors: Mapping[str, Tensor], label: Any, network: ADMDenoiser, file: str) -> int | None:
    """The row of the class embedding to add; None for none."""
    if CLASSES not in tensors:
        if label is not None:
            raise ValueError(f"{file} has no classes ({CLASSES}): leave --set label={label} out.")
        return None
    classes, width = shape(tensors, CLASSES, 2, file)
    if width != 4 * network.base_channels:
        raise ValueError(
            f"{file} has {width} numbers a class ({CLASSES}) where the time has {4 * network.base_channels}: it is "
            "damaged; copy or download it again."
        )
    if label is None:
        raise ValueError(
            f"{file} is class-conditional ({CLASSES}: {classes} classes), and the label of a purified image is what "
            f"nobody knows: add --set label=N (0 ... {classes - 1}) to give every image the same class, or --set "
            "label=unconditional to leave the class out, which it was not trained for."
        )
    if label == "unconditional":
        return None
    if not isinstance(label, int) or isinstance(label, bool) or not 0 <= label < classes:
        raise ValueError(f"--set label takes a class from 0 to {classes - 1}, or unconditional, not {label!r}.")
    return label


def _rules(network: ADMDenoiser, conditional: bool, row: int | None) -> Iterator[Rule]:
    def with_class(bias: Tensor, classes: Tensor) -> Tensor:
        return bias if row is None else bias + classes[row]

    for each in rules(network, legacy=False):
        folded = conditional and each.sources == (_BIAS,)
        yield rule(each.targets, (_BIAS, CLASSES), with_class) if folded else each


CONSISTENCY_MODELS = Format(
    name="consistency-models",
    network="ADM of 64 pixels: OpenAI's ImageNet-64 consistency models (preconditioning=consistency) and their teacher "
    "(preconditioning=edm) with label=N or label=unconditional; CMAP's ImageNet-100 model200000.pt without a label",
    file="cd_imagenet64_lpips.pt",
    published="openaipublic.blob.core.windows.net/consistency, linked from github.com/openai/consistency_models",
    licence="MIT",
    load=load,
)
