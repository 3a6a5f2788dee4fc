"""The U-Nets of guided-diffusion (Dhariwal and Nichol 2021) and improved-diffusion (Nichol and Dhariwal 2021).

Neither file says on which levels its network was trained. The published unconditional network of 256 pixels is
recognised by its sizes; for others an option must say it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, get_args

from torch import Tensor

from lustral.networks.adm import ADMDenoiser
from lustral.networks.importing.adm_layout import CLASSES, build, rules
from lustral.networks.importing.formats import Format
from lustral.networks.importing.options import whole
from lustral.networks.importing.reading import read_torch, tensors_of
from lustral.networks.importing.rules import fill

AttentionOrder = Literal["legacy", "new"]
Levels = Literal["linear", "cosine"]


def load_guided_diffusion(
    path: Path,
    *,
    image_size: int = 256,
    head_width: int = 64,
    attention_order: AttentionOrder = "legacy",
    preconditioning: Levels | None = None,
) -> ADMDenoiser:
    """The network of a guided-diffusion file, whose defaults are the unconditional 256-pixel model's.

    Args:
        path: the file, a state dict.
        image_size: height and width in pixels.
        head_width: channels of an attention head (``num_head_channels``).
        attention_order: order of the rows of an attention: "legacy" by head first, "new" by query, key and value first
            (``use_new_attention_order``).
        preconditioning: the levels it was trained on (``noise_schedule``, see `ADMDenoiser`); optional only for the
            published network of 256 pixels.
    """
    if attention_order not in get_args(AttentionOrder):
        raise ValueError(f"attention_order is {attention_order!r}; it may be {', '.join(get_args(AttentionOrder))}.")
    _check_levels(preconditioning)
    image_size, head_width = whole("image_size", image_size), whole("head_width", head_width)
    tensors = _unconditional(tensors_of(read_torch(path), path.name), path.name)
    # "linear" is a placeholder until the sizes are known; it does not affect the tensors.
    options = {"head_width": head_width, "preconditioning": preconditioning or "linear"}
    network = build(tensors, path.name, image_size, options)
    if network.resample == "conv":
        raise ValueError(f"{path.name} resamples by convolutions as iDDPM does: choose --format improved-diffusion.")
    if preconditioning is None and not is_published(network):
        raise ValueError(
            f"{path.name} is not the published unconditional network of 256 pixels, and no tensor tells on which "
            "levels it was trained: add --set preconditioning=linear or preconditioning=cosine (its noise_schedule); "
            "if it is a network of consistency_models, choose --format consistency-models."
        )
    fill(network, rules(network, attention_order == "legacy"), tensors, path.name)
    return network


def load_improved_diffusion(
    path: Path,
    *,
    image_size: int = 32,
    num_heads: int = 4,
    preconditioning: Levels = "cosine",
) -> ADMDenoiser:
    """The network of an improved-diffusion file, whose defaults are the unconditional CIFAR-10 models'.

    Args:
        path: the file, a state dict.
        image_size: height and width in pixels.
        num_heads: attention heads of every block.
        preconditioning: the levels it was trained on (see `ADMDenoiser`).
    """
    _check_levels(preconditioning)
    image_size, num_heads = whole("image_size", image_size), whole("num_heads", num_heads)
    tensors = _unconditional(tensors_of(read_torch(path), path.name), path.name)
    options = {"head_width": None, "num_heads": num_heads, "preconditioning": preconditioning, "dropout": 0.3}
    network = build(tensors, path.name, image_size, options)
    if network.resample == "residual":
        raise ValueError(f"{path.name} resamples in residual blocks, as ADM does: choose --format guided-diffusion.")
    fill(network, rules(network, legacy=True), tensors, path.name)
    return network


def is_published(network: ADMDenoiser) -> bool:
    """Whether ``network`` has the sizes of guided-diffusion's networks of 256 pixels, all trained on linear levels."""
    sizes = (network.image_size, network.channels, network.base_channels, network.blocks)
    levels = network.multipliers == [1, 1, 2, 2, 4, 4] and sorted(network.attention_sizes) == [8, 16, 32]
    return sizes == (256, 3, 256, 2) and levels and network.head_width == 64 and network.learned_variance


def _check_levels(preconditioning: Levels | None) -> None:
    if preconditioning is not None and preconditioning not in get_args(Levels):
        raise ValueError(
            f"preconditioning is {preconditioning!r}; here it may be {', '.join(get_args(Levels))} (edm and "
            "consistency are for --format consistency-models)."
        )


def _unconditional(tensors: Mapping[str, Tensor], file: str) -> Mapping[str, Tensor]:
    if CLASSES in tensors:
        raise ValueError(
            f"{file} is a class-conditional network ({CLASSES}), and only unconditional ones can purify: import "
            "an unconditional file."
        )
    return tensors


GUIDED_DIFFUSION = Format(
    name="guided-diffusion",
    network="ADM, ImageNet 256 unconditional; others with preconditioning=linear or cosine",
    file="256x256_diffusion_uncond.pt",
    published="https://github.com/openai/guided-diffusion",
    licence="MIT",
    load=load_guided_diffusion,
)
IMPROVED_DIFFUSION = Format(
    name="improved-diffusion",
    network="improved diffusion, CIFAR-10 unconditional (L_hybrid)",
    file="cifar10_uncond_50M_500K.pt",
    published="https://github.com/openai/improved-diffusion",
    licence="MIT",
    load=load_improved_diffusion,
)
