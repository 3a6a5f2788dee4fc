"""What the importers of DDPM++ and NCSN++ share: the parts of a `SongUNet` in the order in which they are called, and
the inference of its architecture from the shapes of its residual blocks.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple, cast

from torch import nn

from lustral.networks import SongUNet
from lustral.networks.song_blocks import Attention, Block

Kind = Literal["fourier", "dense", "conv", "block", "attention", "pyramid", "norm"]


class Part(NamedTuple):
    """A module: its kind, its name in a `SongUNetDenoiser`'s state, and whether it is a block with a shortcut."""

    kind: Kind
    name: str
    projects: bool = False


def parts(network: SongUNet) -> list[Part]:
    """Everything but ``map_augment``, in the order of the forward pass; an attention follows its block."""

    def of(name: str, block: nn.Module) -> list[Part]:
        block = cast(Block, block)
        found = [Part("block", name, isinstance(block.skip, nn.Conv2d))]
        return [*found, Part("attention", f"{name}.attention")] if isinstance(block.attention, Attention) else found

    found = [Part("fourier", "network")] if network.embedding == "fourier" else []
    found += [Part("dense", "network.map0"), Part("dense", "network.map1"), Part("conv", "network.stem")]
    level = 0
    for i, block in enumerate(network.encoder):
        found += of(f"network.encoder.{i}", block)
        if cast(Block, block).factor == 0.5 and len(network.pyramid):
            found.append(Part("pyramid", f"network.pyramid.{level}.conv"))
            level += 1
    for i, block in enumerate(network.middle):
        found += of(f"network.middle.{i}", block)
    for i, blocks in enumerate(network.decoder):
        for j, block in enumerate(cast(nn.ModuleList, blocks)):
            found += of(f"network.decoder.{i}.{j}", block)
    return [*found, Part("norm", "network.norm"), Part("conv", "network.head")]


class Seen(NamedTuple):
    """A residual block of a file: its channels, and whether its shortcut has a convolution of its own."""

    channels_in: int
    channels: int
    projects: bool


class Shape(NamedTuple):
    """``multipliers`` and ``blocks`` of a `SongUNet`."""

    multipliers: list[int]
    blocks: int


def shape_of(seen: Sequence[Seen], base_channels: int, file: str) -> Shape:
    """The architecture, inferred from all residual blocks in the order of the forward pass.

    With L levels of n blocks there are 2 (L - 1) blocks that resample (which keep the width but have a convolution in
    their shortcut) and L (2 n + 1) + 2 that do not.

    Raises:
        ValueError: if no architecture has these blocks.
    """
    plain = [block for block in seen if not (block.projects and block.channels_in == block.channels)]
    levels, odd = divmod(len(seen) - len(plain), 2)
    levels += 1
    twice, rest = divmod(len(plain) - 2, levels)
    blocks = (twice - 1) // 2
    widths = [block.channels for block in plain[: levels * blocks : max(blocks, 1)]]
    if odd or rest or twice % 2 == 0 or blocks < 1 or any(width % base_channels for width in widths):
        raise ValueError(
            f"{file} has {len(seen)} residual blocks, {len(seen) - len(plain)} of which resample, and widths "
            f"{sorted({block.channels for block in seen})} for {base_channels} base channels, which no DDPM++ or "
            "NCSN++ with BigGAN blocks has: check --format."
        )
    return Shape([width // base_channels for width in widths], blocks)
