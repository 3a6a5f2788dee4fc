"""DDPM++ and NCSN++ written down again, line after line, on named tensors: what the importers' files are checked with.

Nothing of the code under test is called. All is float64; filters are matrices, attention is sums over pixels.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tests.contracts import generator

Module = tuple[str, dict[str, Tensor]]
TAPS = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=torch.float64) / 8


@dataclass(frozen=True)
class Net:
    """An architecture; ``ncsn`` has the pyramid and the filter, ``fourier`` the random frequencies."""

    size: int = 8
    channels: int = 3
    base: int = 16
    multipliers: tuple[int, ...] = (1, 2)
    blocks: int = 2
    attention: tuple[int, ...] = (4,)
    ncsn: bool = False
    fourier: bool = False

    @property
    def features(self) -> int:
        return 2 * self.base if self.fourier else self.base


def make(net: Net, seed: int = 0) -> list[Module]:
    """Random modules in the order in which they are called, float32 values. Products are (out, in), as in F.linear."""
    source, made = generator(seed), []

    def draw(*shape: int, scale: float = 1.0, mean: float = 0.0) -> Tensor:
        return mean + scale * torch.randn(*shape, generator=source)

    def product(name: str, out: int, into: int, *pixels: int) -> dict[str, Tensor]:
        scale = 1.0 / math.sqrt(into * math.prod(pixels))
        return {f"{name}.weight": draw(out, into, *pixels, scale=scale), f"{name}.bias": draw(out, scale=0.3)}

    def norm(name: str, width: int) -> dict[str, Tensor]:
        return {f"{name}.weight": draw(width, scale=0.3, mean=1.0), f"{name}.bias": draw(width, scale=0.3)}

    def block(into: int, out: int, projects: bool = False) -> None:
        tensors = norm("norm0", into) | product("conv0", out, into, 3, 3) | product("time", out, 4 * net.base)
        tensors |= norm("norm1", out) | product("conv1", out, out, 3, 3)
        made.append(("block", tensors | (product("skip", out, into, 1, 1) if projects or into != out else {})))

    def attend(width: int) -> None:
        tensors = norm("norm", width)
        for name in "qkvo":
            tensors |= product(name, width, width)
        made.append(("attention", tensors))

    if net.fourier:
        made.append(("fourier", {"W": draw(net.base)}))
    made += [("dense", product("", 4 * net.base, net.features)), ("dense", product("", 4 * net.base, 4 * net.base))]
    made.append(("conv", product("", net.base, net.channels, 3, 3)))
    kept, now, image = [net.base], net.base, net.channels
    for level, multiplier in enumerate(net.multipliers):
        if level:
            block(now, now, projects=True)
            if net.ncsn:
                made.append(("pyramid", product("", now, image, 3, 3)))
                image = now
            kept.append(now)
        for _ in range(net.blocks):
            block(now, multiplier * net.base)
            now = multiplier * net.base
            if net.size >> level in net.attention:
                attend(now)
            kept.append(now)
    block(now, now)
    attend(now)
    block(now, now)
    for level in reversed(range(len(net.multipliers))):
        for _ in range(net.blocks + 1):
            block(now + kept.pop(), net.multipliers[level] * net.base)
            now = net.multipliers[level] * net.base
        if net.size >> level in net.attention:
            attend(now)
        if level:
            block(now, now, projects=True)
    return [*made, ("norm", norm("", now)), ("conv", product("", net.channels, now, 3, 3))]


def _matrix(rows: int, columns: int, entry: Callable[[int, int], int]) -> Tensor:
    """The matrix of taps: ``TAPS[entry(row, column)]``, or 0 where there is no such tap."""
    values = [[float(TAPS[k]) if 0 <= (k := entry(j, i)) < 4 else 0.0 for i in range(columns)] for j in range(rows)]
    return torch.tensor(values, dtype=torch.float64)


def _both(matrix: Tensor, x: Tensor) -> Tensor:
    return torch.einsum("ai,bj,ncij->ncab", matrix, matrix, x)


def resampled(net: Net, x: Tensor, factor: float) -> Tensor:
    """Half or double size."""
    size = x.shape[-1]
    if factor == 0.5:
        box = (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4
        return _both(_matrix(size // 2, size, lambda j, i: i - 2 * j + 1), x) if net.ncsn else box
    copies = x.repeat_interleave(2, -1).repeat_interleave(2, -2)
    return _both(2 * _matrix(2 * size, size, lambda j, i: j + 1 - 2 * i), x) if net.ncsn else copies


def _conv(tensors: dict[str, Tensor], name: str, x: Tensor, pad: int, step: int = 1) -> Tensor:
    weight, bias = tensors[f"{name}.weight"].double(), tensors[f"{name}.bias"].double()
    side = weight.shape[-1]
    x = torch.nn.functional.pad(x, (pad,) * 4).unfold(2, side, step).unfold(3, side, step)
    return torch.einsum("nchwab,ocab->nohw", x, weight) + bias[:, None, None]


def _dense(tensors: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return x @ tensors[f"{name}.weight"].double().T + tensors[f"{name}.bias"].double()


def _norm(tensors: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    grouped = x.reshape(len(x), min(32, x.shape[1] // 4), -1)
    centred = grouped - grouped.mean(-1, keepdim=True)
    flat = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    weight, bias = tensors[f"{name}.weight"].double(), tensors[f"{name}.bias"].double()
    return flat.view_as(x) * weight[:, None, None] + bias[:, None, None]


def _silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def evaluate(net: Net, modules: list[Module], x: Tensor, label: Tensor) -> Tensor:
    """F(x, label): (B, C, H, W) and (B,) to (B, C, H, W)."""
    left, x, label = iter(modules), x.double(), label.double()

    def take(kind: str) -> dict[str, Tensor]:
        found, tensors = next(left)
        assert found == kind
        return tensors

    def block(x: Tensor, factor: float = 1.0) -> Tensor:
        tensors, h = take("block"), x
        h = _silu(_norm(tensors, "norm0", h))
        if factor != 1:
            h, x = resampled(net, h, factor), resampled(net, x, factor)
        h = _conv(tensors, "conv0", h, 1) + _dense(tensors, "time", time)[:, :, None, None]
        h = _conv(tensors, "conv1", _silu(_norm(tensors, "norm1", h)), 1)
        x = _conv(tensors, "skip", x, 0) if "skip.weight" in tensors else x
        return (x + h) / math.sqrt(2)

    def attend(x: Tensor) -> Tensor:
        tensors = take("attention")
        pixels = _norm(tensors, "norm", x).flatten(2).mT
        q, k, v = (_dense(tensors, name, pixels) for name in "qkv")
        scores = torch.exp(torch.einsum("nac,nbc->nab", q, k) / math.sqrt(x.shape[1]))
        found = torch.einsum("nab,nbc->nac", scores / scores.sum(-1, keepdim=True), v)
        return (x + _dense(tensors, "o", found).mT.reshape(x.shape)) / math.sqrt(2)

    half = net.features // 2
    if net.fourier:
        angle = 2 * math.pi * label[:, None] * take("fourier")["W"].double()
    else:
        steps = torch.arange(half, dtype=torch.float64) / (half - 1)
        angle = label[:, None] * torch.exp(-math.log(10000) * steps)
    time = _dense(take("dense"), "", torch.cat((angle.sin(), angle.cos()), 1))
    time = _silu(_dense(take("dense"), "", _silu(time)))

    image, h = x, _conv(take("conv"), "", x, 1)
    kept = [h]
    for level in range(len(net.multipliers)):
        if level:
            h = block(h, 0.5)
            if net.ncsn:
                size = image.shape[-1]
                smooth = _both(_matrix(size + 1, size, lambda j, i: i - j + 2), image)
                h = image = (_conv(take("pyramid"), "", smooth, 0, step=2) + h) / math.sqrt(2)
            kept.append(h)
        for _ in range(net.blocks):
            h = block(h)
            if h.shape[-1] in net.attention:
                h = attend(h)
            kept.append(h)
    h = block(attend(block(h)))
    for level in reversed(range(len(net.multipliers))):
        for _ in range(net.blocks + 1):
            h = block(torch.cat((h, kept.pop()), 1))
        if h.shape[-1] in net.attention:
            h = attend(h)
        if level:
            h = block(h, 2.0)
    h = _conv(modules[-1][1], "", _silu(_norm(take("norm"), "", h)), 1)
    assert not kept
    return h
