"""The U-Nets of guided-diffusion (Dhariwal and Nichol 2021) and improved-diffusion (Nichol and Dhariwal 2021).

One network and one set of names: ``input_blocks.{n}.{j}``, ``middle_block.{j}`` and ``output_blocks.{n}.{j}``, where
j = 0 is a residual block, the next an attention, and the last of a level what doubles the size. Queries, keys and
values are the rows of one matrix, in one of two orders that no shape tells apart.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from torch import Tensor, nn

from lustral.networks.adm import ADMDenoiser
from lustral.networks.importing.formats import Format
from lustral.networks.importing.options import whole
from lustral.networks.importing.reading import count, read_torch, shape, tensors_of
from lustral.networks.importing.rules import Rule, fill, pairs, rule

AttentionOrder = Literal["legacy", "new"]
Parts = Mapping[str, nn.Module]

_RESIDUAL = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
}


def load_guided_diffusion(
    path: Path,
    *,
    image_size: int = 256,
    head_width: int = 64,
    attention_order: AttentionOrder = "legacy",
    preconditioning: Literal["linear", "cosine", "consistency"] = "linear",
) -> ADMDenoiser:
    """The network of a guided-diffusion file, whose defaults are the unconditional 256-pixel model's.

    Args:
        path: the file, a state dict.
        image_size: height and width in pixels.
        head_width: channels of an attention head (``num_head_channels``).
        attention_order: "legacy" has the rows of an attention by head first, "new" by query, key and value first
            (``use_new_attention_order``, and every file of consistency_models).
        preconditioning: how it was trained (see `ADMDenoiser`). "consistency" is for unconditional models with
            scale-shift normalisation trained with consistency_models, such as CMAP's ``model200000.pt`` of ImageNet-100
            (``image_size=64 attention_order=new``). OpenAI's own have labels, or no scale-shift, and are refused.
    """
    if attention_order not in get_args(AttentionOrder):
        raise ValueError(f"attention_order is {attention_order!r}; it may be {', '.join(get_args(AttentionOrder))}.")
    if preconditioning == "consistency" and attention_order == "legacy":
        raise ValueError(
            "preconditioning is consistency and attention_order legacy, but every file of consistency_models has the "
            "other order: add --set attention_order=new."
        )
    image_size, head_width = whole("image_size", image_size), whole("head_width", head_width)
    tensors = tensors_of(read_torch(path), path.name)
    options = {"head_width": head_width, "preconditioning": preconditioning}
    network = _build(tensors, path.name, image_size, options)
    if network.resample == "conv":
        raise ValueError(f"{path.name} resamples by convolutions as iDDPM does: choose --format improved-diffusion.")
    fill(network, list(_rules(network, attention_order == "legacy")), tensors, path.name)
    return network


def load_improved_diffusion(
    path: Path,
    *,
    image_size: int = 32,
    num_heads: int = 4,
    preconditioning: Literal["linear", "cosine"] = "cosine",
) -> ADMDenoiser:
    """The network of an improved-diffusion file, whose defaults are the unconditional CIFAR-10 models'.

    Args:
        path: the file, a state dict.
        image_size: height and width in pixels.
        num_heads: attention heads of every block.
        preconditioning: how it was trained (see `ADMDenoiser`).
    """
    image_size, num_heads = whole("image_size", image_size), whole("num_heads", num_heads)
    tensors = tensors_of(read_torch(path), path.name)
    options = {"head_width": None, "num_heads": num_heads, "preconditioning": preconditioning, "dropout": 0.3}
    network = _build(tensors, path.name, image_size, options)
    if network.resample == "residual":
        raise ValueError(f"{path.name} resamples in residual blocks, as ADM does: choose --format guided-diffusion.")
    fill(network, list(_rules(network, legacy=True)), tensors, path.name)
    return network


def _build(tensors: Mapping[str, Tensor], file: str, image_size: int, options: Mapping[str, Any]) -> ADMDenoiser:
    """The architecture that names and shapes tell, with random weights."""
    if "label_emb.weight" in tensors:
        raise ValueError(
            f"{file} is a class-conditional network (label_emb.weight), and only unconditional ones can purify: import "
            "an unconditional file."
        )
    base = shape(tensors, "time_embed.0.weight", 2, file)[1]
    channels = shape(tensors, "input_blocks.0.0.weight", 4, file)[1]
    ups = {name.split(".")[1]: name for name in tensors if _doubles(name)}  # one name a block
    levels, total = len(ups) + 1, count(tensors, "input_blocks.")
    if total % levels:
        raise ValueError(f"{file} has {total} input blocks for {levels} resolutions: it is damaged; copy it again.")
    first = [1 + level * (total // levels) for level in range(levels)]
    widths = [shape(tensors, f"input_blocks.{n}.0.in_layers.2.weight", 4, file)[0] for n in first]
    if not base or any(width % base for width in widths):
        raise ValueError(f"{file} has {widths} channels, no multiples of the {base} of its time embedding.")
    attends = [any(name.startswith(f"input_blocks.{n}.1.") for name in tensors) for n in first]
    return ADMDenoiser(
        image_size=image_size,
        channels=channels,
        base_channels=base,
        multipliers=[width // base for width in widths],
        blocks=total // levels - 1,
        attention_sizes=[image_size >> level for level in range(levels) if attends[level]],
        resample="conv" if any(".conv." in name for name in ups.values()) else "residual",
        learned_variance=shape(tensors, "out.2.weight", 4, file)[0] == 2 * channels,
        **options,
    )


def _doubles(name: str) -> bool:
    """Whether the tensor belongs to what doubles the size at the end of a level."""
    top, _, place, member, *_ = [*name.split("."), *(4 * [""])]
    return top == "output_blocks" and place != "0" and member in ("conv", "in_layers", "emb_layers", "out_layers")


def _rules(network: ADMDenoiser, legacy: bool) -> Iterator[Rule]:
    """Every tensor of ``network`` by its name in the file."""
    parts = dict(network.named_modules())
    yield from pairs("network.time_embedding.linear_1", "time_embed.0")
    yield from pairs("network.time_embedding.linear_2", "time_embed.2")
    yield from pairs("network.conv_in", "input_blocks.0.0")
    levels, place = len(network.multipliers), 0
    for level in range(levels):
        here = f"network.down_blocks.{level}"
        for i in range(network.blocks):
            place += 1
            yield from _block(parts, here, i, f"input_blocks.{place}", legacy)
        if level < levels - 1:
            place += 1
            yield from _resampler(parts, f"{here}.downsamplers.0", f"input_blocks.{place}.0", "op")
    yield from _residual(parts, "network.mid_block.resnets.0", "middle_block.0")
    yield from _attention(parts, "network.mid_block.attentions.0", "middle_block.1", legacy)
    yield from _residual(parts, "network.mid_block.resnets.1", "middle_block.2")
    place = -1
    for level in range(levels):
        here = f"network.up_blocks.{level}"
        for i in range(network.blocks + 1):
            place += 1
            yield from _block(parts, here, i, f"output_blocks.{place}", legacy)
        if level < levels - 1:
            last = 2 if f"{here}.attentions.0" in parts else 1
            yield from _resampler(parts, f"{here}.upsamplers.0", f"output_blocks.{place}.{last}", "conv")
    yield from pairs("network.conv_norm_out", "out.0")
    yield from pairs("network.conv_out", "out.2")


def _block(parts: Parts, here: str, i: int, source: str, legacy: bool) -> Iterator[Rule]:
    yield from _residual(parts, f"{here}.resnets.{i}", f"{source}.0")
    if f"{here}.attentions.{i}" in parts:
        yield from _attention(parts, f"{here}.attentions.{i}", f"{source}.1", legacy)


def _residual(parts: Parts, target: str, source: str) -> Iterator[Rule]:
    for ours, theirs in _RESIDUAL.items():
        yield from pairs(f"{target}.{ours}", f"{source}.{theirs}")
    if f"{target}.conv_shortcut" in parts:
        yield from pairs(f"{target}.conv_shortcut", f"{source}.skip_connection")


def _resampler(parts: Parts, target: str, source: str, convolution: str) -> Iterator[Rule]:
    if f"{target}.conv1" in parts:
        yield from _residual(parts, target, source)
    else:
        yield from pairs(f"{target}.conv", f"{source}.{convolution}")


def _attention(parts: Parts, target: str, source: str, legacy: bool) -> Iterator[Rule]:
    heads: int = parts[target].heads  # type: ignore[assignment]

    def split(qkv: Tensor) -> tuple[Tensor, ...]:
        """Rows (heads, 3, width) or (3, heads, width) as queries, keys and values, rows (heads, width) each."""
        rows = _matrix(qkv)
        if not legacy:
            return rows.chunk(3)
        return tuple(part.flatten(0, 1) for part in rows.unflatten(0, (heads, 3, -1)).unbind(1))

    yield from pairs(f"{target}.group_norm", f"{source}.norm")
    for member in ("weight", "bias"):
        names = (f"{target}.to_q.{member}", f"{target}.to_k.{member}", f"{target}.to_v.{member}")
        yield rule(names, f"{source}.qkv.{member}", split)
    yield rule(f"{target}.to_out.0.weight", f"{source}.proj_out.weight", _matrix)
    yield rule(f"{target}.to_out.0.bias", f"{source}.proj_out.bias")


def _matrix(tensor: Tensor) -> Tensor:
    """A convolution's weight of one tap, in one dimension or in two, as a matrix; a bias as it is."""
    return tensor.reshape(tensor.shape[:2])


GUIDED_DIFFUSION = Format(
    name="guided-diffusion",
    network="ADM, ImageNet 256 unconditional; preconditioning=consistency attention_order=new image_size=64 for CMAP's "
    "ImageNet-100 model200000.pt (OpenAI's own consistency_models do not fit)",
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
