"""Checkpoints of Score-SDE in PyTorch (Song et al. 2021): ``checkpoint_8.pth`` of DDPM++ and NCSN++.

The file's moving average is a list without names, in the order of the raw weights, which have names. With positional
features, VP, sub-VP and discrete-time models have the same tensors; only continuous VP models are supported here, so an
option must confirm that it is one.
"""

import re
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from lustral.networks import SongUNetDenoiser
from lustral.networks.importing.formats import Format
from lustral.networks.importing.options import whole
from lustral.networks.importing.reading import read_torch, shape, tensors_of, without_prefix
from lustral.networks.importing.rules import Rule, fill, pairs, rule
from lustral.networks.importing.song_layout import Part, Seen, parts, shape_of

SDE = Literal["vp", "ve"]

_LIST = "all_modules"
_NAMES = {"norm0": "GroupNorm_0", "conv0": "Conv_0", "affine": "Dense_0", "norm1": "GroupNorm_1", "conv1": "Conv_1"}


def load(path: str | Path, *, sde: SDE | None = None, image_size: int = 32) -> nn.Module:
    """The denoiser in a checkpoint (its moving average, if it has one) or in a plain ``state_dict``.

    Args:
        path: the file.
        sde: the process that it was trained on in continuous time. Optional for a network with Fourier features, which
            is a continuous VE model in all of the authors' configurations; a network with positional features may be a
            VP, a sub-VP or a discrete-time (VP or VE) model, and is accepted only with "vp".
        image_size: height and width of the training images, which cannot be inferred from the tensors.

    Raises:
        ValueError: if the file is neither, or of another architecture.
    """
    if sde is not None and sde not in get_args(SDE):
        raise ValueError(f"--set sde takes vp or ve, not {sde!r}.")
    file, image_size = Path(path).name, whole("image_size", image_size)
    tensors = _weights(read_torch(path), file)
    tensors.pop("sigmas", None)  # a table that the continuous models do not use
    kinds = _kinds(tensors, file)
    if "conv" not in kinds or "block" not in kinds:
        raise ValueError(f"{file} has no {_LIST} of a DDPM++ or NCSN++ in it: check --format.")
    base_channels, channels = shape(tensors, f"{_LIST}.{kinds.index('conv')}.weight", 4, file)[:2]
    seen = [_seen(tensors, i, file) for i, kind in enumerate(kinds) if kind == "block"]
    multipliers, blocks = shape_of(seen, base_channels, file)
    fourier, pyramid = "fourier" in kinds, "pyramid" in kinds
    _check_process(sde, fourier, file)
    network = SongUNetDenoiser(
        image_size,
        channels,
        base_channels,
        multipliers,
        blocks,
        _attention_sizes(kinds, image_size, len(multipliers), blocks),
        embedding="fourier" if fourier else "positional",
        encoder="residual" if pyramid else "standard",
        resample_filter=(1, 3, 3, 1) if pyramid else (1, 1),
        channel_mult_noise=2 if fourier else 1,
        preconditioning="ve" if fourier else "vp",
    )
    return fill(network, rules(network), tensors, file)


def _check_process(sde: SDE | None, fourier: bool, file: str) -> None:
    """Refuse a process that is missing but needed, or that contradicts the tensors."""
    if fourier and sde == "vp":
        raise ValueError(
            f"{file} has Fourier features of its time, which only continuous VE models have: leave --set sde=vp out."
        )
    if fourier or sde == "vp":
        return
    if sde == "ve":
        raise ValueError(
            f"{file} has positional features of its time, so as a VE model it is a discrete-time one (SMLD), which is "
            "not known here: import a continuous one."
        )
    raise ValueError(
        f"{file} has positional features of its time, and continuous VP, sub-VP and discrete-time models (VP or VE) "
        "then have the same tensors: add --set sde=vp if it was trained on the continuous VP process "
        "(configs/vp/*_continuous.py), the only one of these that is known here."
    )


def rules(network: SongUNetDenoiser) -> list[Rule]:
    """The rules from ``all_modules.{i}.…`` to the network's names."""
    return [r for i, part in enumerate(parts(network.network)) for r in _part(part, f"{_LIST}.{i}")]


def _part(part: Part, source: str) -> list[Rule]:
    if part.kind == "fourier":
        return [rule(f"{part.name}.frequencies", f"{source}.W")]
    if part.kind == "pyramid":
        return pairs(part.name, f"{source}.Conv2d_0")
    if part.kind == "block":
        members = _NAMES | ({"skip": "Conv_2"} if part.projects else {})
        return [r for here, there in members.items() for r in pairs(f"{part.name}.{here}", f"{source}.{there}")]
    if part.kind == "attention":
        into = [f"{source}.NIN_{i}" for i in range(3)]
        return [
            *pairs(f"{part.name}.norm", f"{source}.GroupNorm_0"),
            rule(f"{part.name}.qkv.weight", tuple(f"{name}.W" for name in into), _stacked),
            rule(f"{part.name}.qkv.bias", tuple(f"{name}.b" for name in into), lambda *biases: torch.cat(biases)),
            rule(f"{part.name}.proj.weight", f"{source}.NIN_3.W", _stacked),
            rule(f"{part.name}.proj.bias", f"{source}.NIN_3.b"),
        ]
    return pairs(part.name, source)


def _stacked(*products: Tensor) -> Tensor:
    """Matrices (in, out) as one 1x1 convolution (sum of outs, in, 1, 1)."""
    return torch.cat([product.T for product in products])[:, :, None, None]


def _weights(content: Any, file: str) -> dict[str, Tensor]:
    """The named tensors to import: those of the moving average, if there is one."""
    if not isinstance(content, Mapping) or "ema" not in content:
        return without_prefix(tensors_of(content, file))
    average = content["ema"].get("shadow_params") if isinstance(content["ema"], Mapping) else None
    if "model" not in content or not isinstance(average, list):
        raise ValueError(f"{file} has a moving average (ema) without {{model, ema.shadow_params}}: check --format.")
    raw = without_prefix(tensors_of(content["model"], file))
    frozen = {"sigmas", f"{_LIST}.0.W"}  # not trained, so not in the moving average
    names = [name for name in raw if name not in frozen]
    if len(average) != len(names):
        raise ValueError(
            f"{file} has {len(average)} tensors in its moving average (ema.shadow_params) for {len(names)} parameters "
            "of its model, so which is which cannot be told: copy or download it again."
        )
    for name, tensor in zip(names, average, strict=True):
        if not isinstance(tensor, Tensor) or tensor.shape != raw[name].shape:
            given = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
            raise ValueError(
                f"{file} has {given} in its moving average where the model's {name} is {tuple(raw[name].shape)}: the "
                "two are not of one network."
            )
    return raw | dict(zip(names, average, strict=True))


def _kinds(tensors: Mapping[str, Tensor], file: str) -> list[str]:
    """The kind of each ``all_modules.{i}``, inferred from the names and dimensions of its tensors."""
    members: dict[int, set[str]] = {}
    for name in tensors:
        if found := re.fullmatch(rf"{_LIST}\.(\d+)\.(.+)", name):
            members.setdefault(int(found[1]), set()).add(found[2])
    if sorted(members) != list(range(len(members))):
        raise ValueError(f"{file} has gaps in its list {_LIST} ({len(members)} modules): copy or download it again.")
    return [_kind(members[i], tensors.get(f"{_LIST}.{i}.weight")) for i in range(len(members))]


def _kind(members: set[str], weight: Tensor | None) -> str:
    tops = {member.split(".")[0] for member in members}
    if any(top.startswith("NIN_") for top in tops):
        return "attention"
    for mark, kind in (("W", "fourier"), ("Conv2d_0", "pyramid"), ("Conv_0", "block"), ("Dense_0", "block")):
        if mark in tops:
            return kind
    return {1: "norm", 2: "dense", 4: "conv"}.get(0 if weight is None else weight.ndim, "unknown")


def _seen(tensors: Mapping[str, Tensor], i: int, file: str) -> Seen:
    kernel = shape(tensors, f"{_LIST}.{i}.Conv_0.weight", 4, file)
    return Seen(kernel[1], kernel[0], any(name.startswith(f"{_LIST}.{i}.Conv_2.") for name in tensors))


def _attention_sizes(kinds: list[str], image_size: int, levels: int, blocks: int) -> list[int]:
    """The resolutions with attention, from the encoder: whether the first block of a level is followed by one."""
    after = [following == "attention" for kind, following in pairwise(kinds) if kind == "block"]
    return [image_size >> level for level in range(levels) if after[level * (blocks + 1)]]


SCORE_SDE = Format(
    name="score-sde",
    network="continuous VE NCSN++, and with sde=vp continuous VP DDPM++ and NCSN++; never sub-VP or discrete-time "
    "ones, whose tensors look the same",
    file="checkpoint_8.pth",
    published="Google Drive, linked from github.com/yang-song/score_sde_pytorch",
    licence="Apache-2.0",
    load=load,
)
