"""Published U-Nets written out straight, by the names of their authors: what an import is compared with."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.contracts import generator


class OriginalUNet:
    """Layers called by their names in the original; a layer's random tensors are made when it is first called.

    On the "meta" device only names and shapes are made, so that a network of any size costs nothing.
    """

    def __init__(self, device: str = "cpu") -> None:
        self.state: dict[str, Tensor] = {}
        self.device, self.source = device, generator()

    def tensor(self, name: str, shape: tuple[int, ...], scale: float, around: float = 0.0) -> Tensor:
        if name not in self.state:
            meta = self.device == "meta"
            drawn = torch.empty(shape, device="meta") if meta else torch.randn(shape, generator=self.source)
            self.state[name] = around + scale * drawn
        return self.state[name]

    def conv(self, x: Tensor, name: str, width: int, size: int = 3, stride: int = 1, padding: int = 1) -> Tensor:
        weight = self.tensor(f"{name}.weight", (width, x.shape[1], size, size), (x.shape[1] * size**2) ** -0.5)
        return F.conv2d(x, weight, self.tensor(f"{name}.bias", (width,), 0.3), stride, padding if size > 1 else 0)

    def linear(self, x: Tensor, name: str, width: int, taps: int = 0) -> Tensor:
        """``taps`` dimensions of size 1 make the matrix a convolution's weight in the file."""
        weight = self.tensor(f"{name}.weight", (width, x.shape[-1], *(taps * [1])), x.shape[-1] ** -0.5)
        return x @ weight.flatten(1).T + self.tensor(f"{name}.bias", (width,), 0.3)

    def norm(self, x: Tensor, name: str, eps: float) -> Tensor:
        weight, bias = (
            self.tensor(f"{name}.{k}", (x.shape[1],), 0.3, float(k == "weight")) for k in ("weight", "bias")
        )
        return F.group_norm(x, 32, weight, bias, eps)


def _double(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, -1).repeat_interleave(2, -2)


def _halve(x: Tensor) -> Tensor:
    return (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4


def _attend(x: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One head: (B, pixels, width) three times."""
    share = (q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])).softmax(-1)
    return share @ v


# guided-diffusion and improved-diffusion ------------------------------------------------------------


def _adm_block(o: OriginalUNet, x: Tensor, e: Tensor, name: str, width: int, resample=lambda x: x) -> Tensor:
    h = o.conv(resample(F.silu(o.norm(x, f"{name}.in_layers.0", 1e-5))), f"{name}.in_layers.2", width)
    moved = o.linear(F.silu(e), f"{name}.emb_layers.1", 2 * width)[:, :, None, None]
    h = o.norm(h, f"{name}.out_layers.0", 1e-5) * (1 + moved[:, :width]) + moved[:, width:]
    h = o.conv(F.silu(h), f"{name}.out_layers.3", width)
    x = resample(x)
    return h + (x if x.shape[1] == width else o.conv(x, f"{name}.skip_connection", width, 1))


def _adm_attention(o: OriginalUNet, x: Tensor, name: str, heads: int, legacy: bool, taps: int) -> Tensor:
    width = x.shape[1] // heads
    h = o.norm(x, f"{name}.norm", 1e-5).flatten(2).transpose(1, 2)
    rows = o.linear(h, f"{name}.qkv", 3 * x.shape[1], taps)
    found = []
    for head in range(heads):
        starts = [(3 * head + i) * width if legacy else (i * heads + head) * width for i in range(3)]
        found.append(_attend(x, *(rows[..., start : start + width] for start in starts)))
    h = o.linear(torch.cat(found, -1), f"{name}.proj_out", x.shape[1], taps)
    return x + h.transpose(1, 2).reshape(x.shape)


def adm_unet(
    o: OriginalUNet,
    x: Tensor,
    label: Tensor,
    *,
    base: int,
    multipliers: Sequence[int],
    blocks: int,
    attends: Sequence[bool],
    heads: int | None = None,
    head_width: int = 16,
    legacy: bool = True,
    residual: bool = True,
    outputs: int = 6,
    taps: int = 1,
    classes: int = 0,
    given: int | None = None,
) -> Tensor:
    """Of guided-diffusion (``residual``, heads of one width, either order of q, k and v) and of improved-diffusion, and
    with ``outputs=3, legacy=False, taps=2`` of consistency_models; a class, if any is ``given``, joins the time."""

    def attention(x: Tensor, name: str) -> Tensor:
        return _adm_attention(o, x, name, heads or x.shape[1] // head_width, legacy, taps)

    rates = torch.exp(-math.log(10000) * torch.arange(base // 2, dtype=torch.float32) / (base // 2)).to(label.device)
    angles = label[:, None] * rates
    e = o.linear(torch.cat((angles.cos(), angles.sin()), 1), "time_embed.0", 4 * base)
    e = o.linear(F.silu(e), "time_embed.2", 4 * base)
    if classes:
        embedded = o.tensor("label_emb.weight", (classes, 4 * base), 1.0)
        e = e if given is None else e + embedded[given]
    x = o.conv(x, "input_blocks.0.0", base)
    kept, n, last = [x], 0, len(multipliers) - 1
    for level, multiplier in enumerate(multipliers):
        for _ in range(blocks):
            n += 1
            x = _adm_block(o, x, e, f"input_blocks.{n}.0", multiplier * base)
            x = attention(x, f"input_blocks.{n}.1") if attends[level] else x
            kept.append(x)
        if level < last:
            n += 1
            name = f"input_blocks.{n}.0"
            width = x.shape[1]
            x = _adm_block(o, x, e, name, width, _halve) if residual else o.conv(x, f"{name}.op", width, stride=2)
            kept.append(x)
    x = attention(_adm_block(o, x, e, "middle_block.0", x.shape[1]), "middle_block.1")
    x = _adm_block(o, x, e, "middle_block.2", x.shape[1])
    n = -1
    for level in range(last, -1, -1):
        for i in range(blocks + 1):
            n += 1
            x = _adm_block(o, torch.cat((x, kept.pop()), 1), e, f"output_blocks.{n}.0", multipliers[level] * base)
            x = attention(x, f"output_blocks.{n}.1") if attends[level] else x
            if level and i == blocks:
                name, width = f"output_blocks.{n}.{1 + attends[level]}", x.shape[1]
                x = _adm_block(o, x, e, name, width, _double) if residual else o.conv(_double(x), f"{name}.conv", width)
    assert not kept
    return o.conv(F.silu(o.norm(x, "out.0", 1e-5)), "out.2", outputs)


# Ho et al.'s, in the PyTorch port and in DDIM's code ------------------------------------------------------------


def _ho_block(o: OriginalUNet, x: Tensor, e: Tensor, name: str, width: int) -> Tensor:
    h = o.conv(F.silu(o.norm(x, f"{name}.norm1", 1e-6)), f"{name}.conv1", width)
    h = h + o.linear(F.silu(e), f"{name}.temb_proj", width)[:, :, None, None]
    h = o.conv(F.silu(o.norm(h, f"{name}.norm2", 1e-6)), f"{name}.conv2", width)
    return h + (x if x.shape[1] == width else o.conv(x, f"{name}.nin_shortcut", width, 1))


def _ho_attention(o: OriginalUNet, x: Tensor, name: str) -> Tensor:
    h = o.norm(x, f"{name}.norm", 1e-6).flatten(2).transpose(1, 2)
    found = _attend(x, *(o.linear(h, f"{name}.{part}", x.shape[1], 2) for part in "qkv"))
    return x + o.linear(found, f"{name}.proj_out", x.shape[1], 2).transpose(1, 2).reshape(x.shape)


def ho_unet(
    o: OriginalUNet,
    x: Tensor,
    label: Tensor,
    *,
    base: int,
    multipliers: Sequence[int],
    blocks: int,
    attends: Sequence[bool],
) -> Tensor:
    """One head an attention; what halves pads at the right and below only."""
    half = base // 2
    rates = torch.exp(-math.log(10000) / (half - 1) * torch.arange(half, dtype=torch.float32)).to(label.device)
    angles = label[:, None] * rates
    e = o.linear(torch.cat((angles.sin(), angles.cos()), 1), "temb.dense.0", 4 * base)
    e = o.linear(F.silu(e), "temb.dense.1", 4 * base)
    x = o.conv(x, "conv_in", base)
    kept, last = [x], len(multipliers) - 1
    for level, multiplier in enumerate(multipliers):
        for i in range(blocks):
            x = _ho_block(o, x, e, f"down.{level}.block.{i}", multiplier * base)
            x = _ho_attention(o, x, f"down.{level}.attn.{i}") if attends[level] else x
            kept.append(x)
        if level < last:
            x = o.conv(F.pad(x, (0, 1, 0, 1)), f"down.{level}.downsample.conv", x.shape[1], stride=2, padding=0)
            kept.append(x)
    x = _ho_attention(o, _ho_block(o, x, e, "mid.block_1", x.shape[1]), "mid.attn_1")
    x = _ho_block(o, x, e, "mid.block_2", x.shape[1])
    for level in range(last, -1, -1):
        for i in range(blocks + 1):
            x = _ho_block(o, torch.cat((x, kept.pop()), 1), e, f"up.{level}.block.{i}", multipliers[level] * base)
            x = _ho_attention(o, x, f"up.{level}.attn.{i}") if attends[level] else x
        if level:
            x = o.conv(_double(x), f"up.{level}.upsample.conv", x.shape[1])
    assert not kept
    return o.conv(F.silu(o.norm(x, "norm_out", 1e-6)), "conv_out", 3)
