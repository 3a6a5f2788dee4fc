"""The U-Nets DDPM++ and NCSN++: the published sizes, their parts against straight-line evaluations, two derivatives."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lustral.networks import SongUNet, SongUNetDenoiser
from lustral.networks.song_blocks import Attention, Block, Pyramid, Resample, _Attend
from tests.contracts import central_differences, generator, randomise, relative_error
from tests.lustral.importing.song_reference import Net, resampled

NCSNPP = {
    "embedding": "fourier",
    "encoder": "residual",
    "resample_filter": (1, 3, 3, 1),
    "channel_mult_noise": 2,
    "preconditioning": "consistency",
}


def _parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(
    ("build", "count"),
    [
        (lambda: SongUNetDenoiser(), 106_632_579),
        (lambda: SongUNetDenoiser(blocks=4), 61_804_419),
        (lambda: SongUNet(32, 3, 128, (2, 2, 2), 4, (16,), 0.13, augment_dim=9), 55_733_891),
        (lambda: SongUNetDenoiser(multipliers=(2, 2, 2), blocks=4, augment_dim=9, **NCSNPP), 56_397_827),  # type: ignore[arg-type]
        (lambda: SongUNetDenoiser(multipliers=(2, 2, 2), blocks=4, **NCSNPP), 56_395_523),  # type: ignore[arg-type]
    ],
    ids=["Score-SDE DDPM++ deep", "Score-SDE DDPM++", "EDM CIFAR-10 VP", "EDM CIFAR-10 VE", "consistency, 56.4 M"],
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
        nn.init.zeros_(network.head.bias)  # type: ignore[arg-type]
        out = network(torch.randn(2, 1, 8, 8, generator=generator()), torch.tensor([1.0, 900.0]))
    assert out.abs().max() < 1e-2


def test_attention_is_softmax_of_scaled_products() -> None:
    attention = Attention(8).double()
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
    block = Block(8, 12, 16, dropout=0.0, resample=resample).double()
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


def test_fourier_features_are_sines_and_cosines_of_turns() -> None:
    network = SongUNet(4, 1, 8, (1,), 1, (), 0.0, embedding="fourier", channel_mult_noise=2)
    network.get_buffer("frequencies").copy_(torch.arange(8) / 10)
    seen: list[torch.Tensor] = []
    network.map0.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    network.embed(torch.tensor([2.5]))
    turns = [2 * math.pi * 2.5 * i / 10 for i in range(8)]
    expected = [math.sin(turn) for turn in turns] + [math.cos(turn) for turn in turns]
    torch.testing.assert_close(seen[0][0], torch.tensor(expected), rtol=1e-5, atol=1e-6)
    assert "frequencies" in network.state_dict()
    assert "frequencies" not in dict(network.named_parameters())


@pytest.mark.parametrize("taps", [(1, 1), (1, 3, 3, 1)])
@pytest.mark.parametrize("factor", [0.5, 2])
def test_filters_are_their_matrices(taps: tuple[int, ...], factor: float) -> None:
    x = torch.randn(2, 3, 6, 6, generator=generator(), dtype=torch.float64)
    found = Resample(factor, taps).double()(x)
    torch.testing.assert_close(found, resampled(Net(ncsn=len(taps) == 4), x, factor))


def test_a_constant_stays_what_it_is_inside_a_filtered_image() -> None:
    """The taps are normalised; only the frame meets the zeros outside."""
    x = torch.ones(1, 2, 8, 8)
    assert torch.equal(Resample(0.5, (1, 3, 3, 1))(x)[..., 1:-1, 1:-1], torch.ones(1, 2, 2, 2))
    assert torch.equal(Resample(2, (1, 3, 3, 1))(x)[..., 1:-1, 1:-1], torch.ones(1, 2, 14, 14))


def test_a_pyramid_filters_and_convolves_an_image_that_is_padded_once() -> None:
    """A single pixel's response: the taps' outer product, seen through the kernel in steps of two."""
    pyramid = Pyramid(1, 1, (1, 3, 3, 1)).double()
    randomise(pyramid, 0.5)
    image = torch.zeros(1, 1, 6, 6, dtype=torch.float64)
    image[0, 0, 0, 3] = 1.0  # at the border, where the padding shows
    x = torch.randn(1, 1, 3, 3, generator=generator(1), dtype=torch.float64)
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=torch.float64) / 8
    weight, bias = pyramid.conv.weight[0, 0], pyramid.conv.bias
    assert bias is not None
    expected = torch.zeros(3, 3, dtype=torch.float64)
    for i in range(3):
        for j in range(3):
            for a in range(3):
                for b in range(3):
                    # Smoothed pixel (2i + a, 2j + b) sees image pixels from two before it on.
                    row, column = 0 - (2 * i + a) + 2, 3 - (2 * j + b) + 2
                    if 0 <= row < 4 and 0 <= column < 4:
                        expected[i, j] += weight[a, b] * taps[row] * taps[column]
    torch.testing.assert_close(pyramid(image, x)[0, 0], (expected + bias + x[0, 0]) / math.sqrt(2))


def test_attention_has_two_right_derivatives() -> None:
    """The forward kernel has one of its own at most, so both are ours."""
    q, k, v = (torch.randn(2, 1, 3, 4, generator=generator(i), dtype=torch.float64) for i in range(3))
    inputs = tuple(tensor.requires_grad_() for tensor in (q, k, v))
    assert torch.autograd.gradcheck(_Attend.apply, inputs)
    assert torch.autograd.gradgradcheck(_Attend.apply, inputs)


@pytest.mark.parametrize("options", [{}, NCSNPP], ids=["DDPM++", "NCSN++"])
def test_second_derivatives_are_the_differences_of_first_ones(options: dict[str, object]) -> None:
    denoiser = SongUNetDenoiser(4, 1, 8, (1, 2), 1, (4,), dropout=0.0, **options)  # type: ignore[arg-type]
    randomise(denoiser, 0.3)
    denoiser = denoiser.double().eval().requires_grad_(False)
    t = torch.tensor(300.0, dtype=torch.float64)
    x, weight, along = (torch.randn(2, 1, 4, 4, generator=generator(i), dtype=torch.float64) for i in range(3))

    def slope(z: torch.Tensor) -> torch.Tensor:
        """The first derivative of every row, along ``along``."""
        with torch.enable_grad():
            z = z if z.requires_grad else z.detach().requires_grad_()
            (gradient,) = torch.autograd.grad((denoiser(z, t) * weight).sum(), z, create_graph=True)
            return (gradient * along).flatten(1).sum(1)

    x.requires_grad_()
    (found,) = torch.autograd.grad(slope(x).sum(), x)
    assert found.abs().min() > 0
    assert relative_error(found, central_differences(lambda z: slope(z).detach(), x.detach())) < 1e-6


def test_a_graph_changes_no_bit() -> None:
    """A stored step and its recomputation are equal, whether or not either keeps its graph."""
    network = SongUNet(8, 1, 16, (1, 2), 1, (8, 4), 0.0).eval()
    randomise(network, 0.2)
    x, label = torch.randn(2, 1, 8, 8, generator=generator()), torch.tensor([1.0, 900.0])
    with torch.no_grad():
        bare = network(x, label)
    assert torch.equal(network(x.requires_grad_(), label), bare)


def test_the_end_of_a_consistency_function_s_path_is_the_network_s() -> None:
    for sigma_min in (0.002, 0.003):
        denoiser = SongUNetDenoiser(
            4, 1, 8, (1, 2), 1, (4,), preconditioning="consistency", sigma_data=0.4, sigma_min=sigma_min
        )
        scales = denoiser.preconditioner.scales(torch.tensor(0.01, dtype=torch.float64))
        moved = 0.01 - sigma_min
        assert float(scales.skip) == pytest.approx(0.16 / (moved**2 + 0.16), rel=1e-12)
        assert float(scales.out) == pytest.approx(moved * 0.4 / math.sqrt(0.01**2 + 0.16), rel=1e-12)


@pytest.mark.parametrize(("labels", "expected"), [("index", [0.0, 49.0, 99.0]), ("continuous", [0.92, 49.5, 99.5])])
def test_on_the_table_a_label_is_an_index_or_that_of_as_much_noise(labels: str, expected: list[float]) -> None:
    denoiser = SongUNetDenoiser(4, 1, 8, (1, 2), 1, (4,), schedule_type="linear", labels=labels)  # type: ignore[arg-type]
    seen, levels = [], [1.0, 50.0, 100.0]
    denoiser.network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[1]))
    denoiser(torch.zeros(3, 1, 4, 4), torch.tensor(levels, dtype=torch.float64))
    torch.testing.assert_close(seen[0].double(), torch.tensor(expected).double(), atol=0.1, rtol=0)
    if labels == "index":
        assert seen[0].tolist() == expected
        scales, own = (
            n.preconditioner.scales(torch.ones(1)) for n in (denoiser, SongUNetDenoiser(4, 1, 8, (1,), 1, ()))
        )
        assert scales == own


def test_an_index_is_for_networks_of_the_vp_process() -> None:
    with pytest.raises(
        ValueError, match="labels is 'index'; it may be continuous, or index where preconditioning is vp"
    ):
        SongUNetDenoiser(4, 1, 8, (1, 2), 1, (4,), preconditioning="edm", labels="index")
    with pytest.raises(ValueError, match="labels is 'floor'"):
        SongUNetDenoiser(4, 1, 8, (1, 2), 1, (4,), labels="floor")  # type: ignore[arg-type]


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="halved 3 times"):
        SongUNetDenoiser(image_size=12)
    with pytest.raises(ValueError, match="multiple of 4"):
        SongUNetDenoiser(base_channels=6)
    with pytest.raises(ValueError, match=r"embedding is 'sine'; it may be positional or fourier"):
        SongUNetDenoiser(embedding="sine")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"encoder is 'skip'; it may be standard or residual"):
        SongUNetDenoiser(encoder="skip")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"resample_filter is \[1, 2, 1\]; it may be \[1, 1\] or \[1, 3, 3, 1\]"):
        SongUNetDenoiser(resample_filter=[1, 2, 1])
