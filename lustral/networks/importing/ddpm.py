"""The U-Net of Ho et al. (2020) with the names of its PyTorch port, in two kinds of file.

The port (pesser) is a plain state dict: ``down.{l}.block.{i}``, ``down.{l}.attn.{i}``, ``mid.*``, ``up.{l}.*``, where l
is the resolution level in the decoder too, which therefore runs through ``up`` from the last to the first. DDIM's code
(Song et al. 2021), with which Lee and Kim (2023) trained their SVHN model, has the same network and saves a list.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

from torch import Tensor

from lustral.networks.importing.formats import Format
from lustral.networks.importing.options import whole
from lustral.networks.importing.reading import count, read_torch, shape, tensors_of, without_prefix
from lustral.networks.importing.rules import Rule, fill, pairs, rule
from lustral.networks.unet import UNetDenoiser

_RESIDUAL = {"norm1": "norm1", "conv1": "conv1", "time_emb_proj": "temb_proj", "norm2": "norm2", "conv2": "conv2"}
_ATTENTION = {"to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def load_ddpm(path: Path, *, image_size: int = 32) -> UNetDenoiser:
    """The network of a file of the port, a state dict; ``image_size`` in pixels cannot be inferred from tensors."""
    image_size = whole("image_size", image_size)
    return _network(tensors_of(read_torch(path), path.name), path.name, image_size)


def load_lee_kim_svhn(path: Path) -> UNetDenoiser:
    """The network of a checkpoint of DDIM's code: a list, of which Lee and Kim use the first item.

    It is the state dict of the trained network. The fifth item is the moving average, which they do not use.
    """
    saved = read_torch(path)
    if not isinstance(saved, list) or not saved:
        raise ValueError(
            f"{path.name} holds a {type(saved).__name__} where a list beginning with a state dict was expected: check "
            "--format."
        )
    return _network(without_prefix(tensors_of(saved[0], path.name)), path.name, 32)


def _network(tensors: Mapping[str, Tensor], file: str, image_size: int) -> UNetDenoiser:
    levels = count(tensors, "down.")
    network = UNetDenoiser(
        image_size=image_size,
        channels=shape(tensors, "conv_in.weight", 4, file)[1],
        widths=[shape(tensors, f"down.{level}.block.0.conv1.weight", 4, file)[0] for level in range(levels)],
        blocks=count(tensors, "down.0.block."),
        attention=[any(name.startswith(f"down.{level}.attn.") for name in tensors) for level in range(levels)],
    )
    fill(network, list(_rules(network)), tensors, file)
    return network


def _rules(network: UNetDenoiser) -> Iterator[Rule]:
    """Every tensor of ``network`` by its name in the file."""
    parts = {name for name, _ in network.named_modules()}
    yield from pairs("network.time_embedding.linear_1", "temb.dense.0")
    yield from pairs("network.time_embedding.linear_2", "temb.dense.1")
    yield from pairs("network.conv_in", "conv_in")
    last = len(network.widths) - 1
    for level, attends in enumerate(network.attention):
        for here, there, blocks in (
            (f"network.down_blocks.{level}", f"down.{level}", network.blocks),
            (f"network.up_blocks.{last - level}", f"up.{level}", network.blocks + 1),
        ):
            for i in range(blocks):
                yield from _residual(parts, f"{here}.resnets.{i}", f"{there}.block.{i}")
                if attends:
                    yield from _attention(f"{here}.attentions.{i}", f"{there}.attn.{i}")
        if level < last:
            yield from pairs(f"network.down_blocks.{level}.downsamplers.0.conv", f"down.{level}.downsample.conv")
        if level > 0:
            yield from pairs(f"network.up_blocks.{last - level}.upsamplers.0.conv", f"up.{level}.upsample.conv")
    yield from _residual(parts, "network.mid_block.resnets.0", "mid.block_1")
    yield from _attention("network.mid_block.attentions.0", "mid.attn_1")
    yield from _residual(parts, "network.mid_block.resnets.1", "mid.block_2")
    yield from pairs("network.conv_norm_out", "norm_out")
    yield from pairs("network.conv_out", "conv_out")


def _residual(parts: set[str], target: str, source: str) -> Iterator[Rule]:
    for ours, theirs in _RESIDUAL.items():
        yield from pairs(f"{target}.{ours}", f"{source}.{theirs}")
    if f"{target}.conv_shortcut" in parts:
        yield from pairs(f"{target}.conv_shortcut", f"{source}.nin_shortcut")


def _attention(target: str, source: str) -> Iterator[Rule]:
    yield from pairs(f"{target}.group_norm", f"{source}.norm")
    for ours, theirs in _ATTENTION.items():
        yield rule(f"{target}.{ours}.weight", f"{source}.{theirs}.weight", _matrix)
        yield rule(f"{target}.{ours}.bias", f"{source}.{theirs}.bias")


def _matrix(weight: Tensor) -> Tensor:
    """The weight of a 1 x 1 convolution as a matrix."""
    return weight.reshape(weight.shape[:2])


DDPM = Format(
    name="ddpm",
    network="Ho et al.'s U-Net, CIFAR-10, moving average",
    file="ema_diffusion_cifar10_model/model-790000.ckpt",
    published="https://github.com/pesser/pytorch_diffusion",
    licence="MIT",
    load=load_ddpm,
)
LEE_KIM_SVHN = Format(
    name="lee-kim-svhn",
    network="Ho et al.'s U-Net, SVHN",
    file="a checkpoint of DDIM's training code",
    published="https://github.com/ml-postech/robust-evaluation-of-diffusion-based-purification (not released)",
    licence="MIT",
    load=load_lee_kim_svhn,
)
