"""What the importers of guided-diffusion, improved-diffusion and consistency_models share.

They have the same U-Net and the same names: ``input_blocks.{n}.{j}``, ``middle_block.{j}`` and
``output_blocks.{n}.{j}``, where j = 0 is a residual block, the next an attention, and the last of a level the layer
that doubles the size. Queries, keys and values are the rows of one matrix, in one of two orders, which cannot be told
apart by shapes.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from lustral.networks.adm import ADMDenoiser
from lustral.networks.importing.reading import count, shape
from lustral.networks.importing.rules import Rule, pairs, rule

CLASSES = "label_emb.weight"
"""The name of the class embedding of a class-conditional network."""

Parts = Mapping[str, nn.Module]

_RESIDUAL = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
}


def build(tensors: Mapping[str, Tensor], file: str, image_size: int, options: Mapping[str, Any]) -> ADMDenoiser:
    """The architecture inferred from names and shapes, with random weights."""
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
    """Whether the tensor belongs to the layer that doubles the size at the end of a level."""
    top, _, place, member, *_ = [*name.split("."), *(4 * [""])]
    return top == "output_blocks" and place != "0" and member in ("conv", "in_layers", "emb_layers", "out_layers")


def rules(network: ADMDenoiser, legacy: bool) -> Iterator[Rule]:
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
    """The weight of a 1 x 1 convolution, in one or two dimensions, as a matrix; a bias unchanged."""
    return tensor.reshape(tensor.shape[:2])
