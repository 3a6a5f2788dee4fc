"""OpenAI's consistency models for CIFAR-10 (Song et al. 2023), trained in JAX: ``checkpoint_80`` of NCSN++.

They are read without JAX. The moving average (``params_ema``) is imported, with which the authors sample. The EDM model
that is their teacher (``edm_cifar10_ema``) has the same tensors but other scales, so an option must say which it is.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from lustral.networks import SongUNetDenoiser
from lustral.networks.importing.flax_file import read_flax
from lustral.networks.importing.formats import Format
from lustral.networks.importing.options import whole, wholes
from lustral.networks.importing.reading import shape
from lustral.networks.importing.rules import Rule, fill, rule
from lustral.networks.importing.song_layout import Kind, Part, Seen, parts, shape_of

_BLOCK = "ResnetBlockBigGANpp"
_CLASSES: dict[Kind, str] = {
    "fourier": "GaussianFourierProjection",
    "dense": "Dense",
    "conv": "Conv",
    "block": _BLOCK,
    "attention": "AttnBlockpp",
    "pyramid": "Downsample",
    "norm": "GroupNorm",
}


def load(
    path: str | Path,
    *,
    preconditioning: Literal["consistency", "edm"],
    image_size: int = 32,
    attention_sizes: Sequence[int] = (16,),
) -> nn.Module:
    """The consistency function in a checkpoint, as a denoiser.

    Args:
        preconditioning: "consistency" for the consistency models, distilled or trained alone (``checkpoint_80`` and
            others), "edm" for the teacher that is published beside them (``edm_cifar10_ema``).
        image_size: height and width of the training images, which cannot be inferred from the tensors.
        attention_sizes: resolutions whose blocks have attention, which cannot be inferred either.

    Raises:
        ValueError: if the file is no such checkpoint, or of another architecture.
    """
    if preconditioning not in ("consistency", "edm"):
        raise ValueError(f"preconditioning is {preconditioning!r}; it may be consistency or edm.")
    image_size, attention_sizes = whole("image_size", image_size), wholes("attention_sizes", attention_sizes)
    file = Path(path).name
    tensors = read_flax(path, "params_ema")
    channels, base_channels = shape(tensors, "Conv_0.kernel", 4, file)[2:]
    multipliers, blocks = shape_of(_seen(tensors, file), base_channels, file)
    network = SongUNetDenoiser(
        image_size,
        channels,
        base_channels,
        multipliers,
        blocks,
        attention_sizes,
        dropout=0.0,
        embedding="fourier",
        encoder="residual",
        resample_filter=(1, 3, 3, 1),
        channel_mult_noise=2,
        preconditioning=preconditioning,
    )
    return fill(network, rules(network), tensors, file)


def rules(network: SongUNetDenoiser) -> list[Rule]:
    """The rules from flax's names (a class and the number of previous modules of it) to the network's."""
    made, before = [], Counter[Kind]()
    for part in parts(network.network):
        made += _part(part, f"{_CLASSES[part.kind]}_{before[part.kind]}")
        before[part.kind] += 1
    return made


def _part(part: Part, source: str) -> list[Rule]:
    if part.kind == "fourier":
        return [rule(f"{part.name}.frequencies", f"{source}.W")]
    if part.kind == "pyramid":
        kernel = rule(f"{part.name}.weight", f"{source}.Conv2d_0.weight", _kernel)
        return [kernel, rule(f"{part.name}.bias", f"{source}.Conv2d_0.bias")]
    if part.kind == "norm":
        return _norm(part.name, source)
    if part.kind in ("dense", "conv"):
        return _weighted(part.name, source)
    if part.kind == "attention":
        into = [f"{source}.NIN_{i}" for i in range(3)]
        return [
            *_norm(f"{part.name}.norm", f"{source}.GroupNorm_0"),
            rule(f"{part.name}.qkv.weight", tuple(f"{name}.W" for name in into), _stacked),
            rule(f"{part.name}.qkv.bias", tuple(f"{name}.b" for name in into), lambda *biases: torch.cat(biases)),
            rule(f"{part.name}.proj.weight", f"{source}.NIN_3.W", _stacked),
            rule(f"{part.name}.proj.bias", f"{source}.NIN_3.b"),
        ]
    made = [r for i in range(2) for r in _norm(f"{part.name}.norm{i}", f"{source}.GroupNorm_{i}")]
    made += _weighted(f"{part.name}.affine", f"{source}.Dense_0")
    for i, here in enumerate(["conv0", "conv1", *(["skip"] if part.projects else [])]):
        made += _weighted(f"{part.name}.{here}", f"{source}.Conv_{i}")
    return made


def _norm(target: str, source: str) -> list[Rule]:
    return [rule(f"{target}.weight", f"{source}.scale"), rule(f"{target}.bias", f"{source}.bias")]


def _weighted(target: str, source: str) -> list[Rule]:
    return [rule(f"{target}.weight", f"{source}.kernel", _kernel), rule(f"{target}.bias", f"{source}.bias")]


def _kernel(kernel: Tensor) -> Tensor:
    """(height, width, in, out) or (in, out) to (out, in, height, width) or (out, in)."""
    return kernel.T if kernel.ndim == 2 else kernel.permute(3, 2, 0, 1)


def _stacked(*products: Tensor) -> Tensor:
    """Matrices (in, out) as one 1x1 convolution (sum of outs, in, 1, 1)."""
    return torch.cat([product.T for product in products])[:, :, None, None]


def _seen(tensors: Mapping[str, Tensor], file: str) -> list[Seen]:
    numbers = {int(found[1]) for name in tensors if (found := re.match(rf"{_BLOCK}_(\d+)\.", name))}
    seen = []
    for i in sorted(numbers):
        kernel = shape(tensors, f"{_BLOCK}_{i}.Conv_0.kernel", 4, file)
        seen.append(Seen(kernel[2], kernel[3], any(name.startswith(f"{_BLOCK}_{i}.Conv_2.") for name in tensors)))
    return seen


CONSISTENCY_JAX = Format(
    name="consistency-jax",
    network="OpenAI's consistency models for CIFAR-10 (preconditioning=consistency), and their teacher "
    "(preconditioning=edm)",
    file="checkpoint_80",
    published="openaipublic.blob.core.windows.net, linked from github.com/openai/consistency_models_cifar10",
    licence="Apache-2.0",
    load=load,
)
