"""The U-Net of DDPM++ and EDM: the published sizes, and its parts against straight-line evaluations."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lustral.networks import SongUNet, SongUNetDenoiser
from lustral.networks.song_unet import _Attention, _Block
from tests.contracts import generator, randomise


def _parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(
    ("build", "count"),
    [
        (lambda: SongUNetDenoiser(), 106_632_579),
        (lambda: SongUNetDenoiser(blocks=4), 61_804_419),
        (lambda: SongUNet(32, 3, 128, (2, 2, 2), 4, (16,), 0.13, augment_dim=9), 55_733_891),
    ],
    ids=["Score-SDE DDPM++ deep", "Score-SDE DDPM++", "EDM CIFAR-10 VP"],
)
def test_published_sizes(build, count: int) -> None:
    with torch.device("meta"):
        assert _parameters(build()) == count


@pytest.mark.parametrize(("blocks", "gigaflops"), [(8, 37.1), (4, 21.7)])
def test_published_work(blocks: int, gigaflops: float) -> None:
    """2 FLOP a multiply-add in convolutions and products, an image and call."""
    with torch.device("meta"):
        network = SongUNetDenoiser(blocks=blocks).network.eval()
        counter = FlopCounterMode(display=False)
        with counter, torch.no_grad():
            network(torch.empty(1, 3, 32, 32), torch.empty(1))
    assert counter.get_total_flops() / 1e9 == pytest.approx(gigaflops, rel=0.01)


def test_an_untrained_network_predicts_nothing() -> None:
    network = SongUNet(8, 1, 16, (1, 2), 1, (8,), 0.0).eval()
    with torch.no_grad():
        network.head.bias.zero_()
        out = network(torch.randn(2, 1, 8, 8, generator=generator()), torch.tensor([1.0, 900.0]))
    assert out.abs().max() < 1e-2


def test_attention_is_softmax_of_scaled_products() -> None:
    attention = _Attention(8).double()
    randomise(attention, 0.3)
    x = torch.randn(2, 8, 3, 3, generator=generator(), dtype=torch.float64)
    h = attention.norm(x)
    weight, bias = attention.qkv.weight[:, :, 0, 0], attention.qkv.bias
    assert bias is not None
    thirds = zip(weight.chunk(3), bias.chunk(3), strict=True)
    q, k, v = (torch.einsum("bchw,oc->bohw", h, w) + b[:, None, None] for w, b in thirds)
    scores = torch.einsum("bcij,bckl->bijkl", q, k) / math.sqrt(8)
    share = scores.flatten(3).softmax(-1).view_as(scores)
    found = torch.einsum("bijkl,bckl->bcij", share, v)
    expected = (x + attention.proj(found)) / math.sqrt(2)
    torch.testing.assert_close(attention(x), expected)


@pytest.mark.parametrize("resample", [0.5, 1, 2])
def test_a_block_resamples_branch_and_shortcut(resample: float) -> None:
    block = _Block(8, 12, 16, dropout=0.0, resample=resample).double()
    randomise(block, 0.3)
    x = torch.randn(2, 8, 4, 4, generator=generator(), dtype=torch.float64)
    embedding = torch.randn(2, 16, generator=generator(1), dtype=torch.float64)

    def resampled(z: torch.Tensor) -> torch.Tensor:
        if resample == 0.5:
            return (z[..., ::2, ::2] + z[..., 1::2, ::2] + z[..., ::2, 1::2] + z[..., 1::2, 1::2]) / 4
        return z.repeat_interleave(2, -1).repeat_interleave(2, -2) if resample == 2 else z

    h = block.conv0(resampled(F.silu(block.norm0(x))))
    h = h + (embedding @ block.affine.weight.T + block.affine.bias)[:, :, None, None]
    h = block.conv1(F.silu(block.norm1(h)))
    torch.testing.assert_close(block(x, embedding), (h + block.skip(resampled(x))) / math.sqrt(2))


def test_the_time_embedding_starts_with_sines_at_frequency_one() -> None:
    network = SongUNet(4, 1, 8, (1,), 1, (), 0.0)
    seen: list[torch.Tensor] = []
    network.map0.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    network.embed(torch.tensor([3.0]))
    frequencies = [1.0, 10 ** (-4 / 3), 10 ** (-8 / 3), 1e-4]
    expected = [math.sin(3 * f) for f in frequencies] + [math.cos(3 * f) for f in frequencies]
    torch.testing.assert_close(seen[0][0], torch.tensor(expected), rtol=1e-5, atol=1e-6)


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="halved 3 times"):
        SongUNetDenoiser(image_size=12)
    with pytest.raises(ValueError, match="multiple of 4"):
        SongUNetDenoiser(base_channels=6)
