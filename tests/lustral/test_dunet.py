"""The DUNet: its size as published, its shapes, and its weights file."""

from pathlib import Path

import pytest
import torch
from torch import nn

from lustral.networks import DUNet, WideResNet, load_image_denoiser, save_network


def test_the_default_has_the_published_number_of_weights() -> None:
    with torch.device("meta"):
        network = DUNet()
    convolutions = sum(m.weight.numel() for m in network.modules() if isinstance(m, nn.Conv2d))
    assert convolutions == 11_024_256
    assert sum(p.numel() for p in network.parameters()) == 11_033_984


@pytest.mark.parametrize(("size", "widths"), [(8, (4, 8)), (7, (4, 8, 8)), (16, (4, 8, 8, 8, 8))])
def test_the_output_is_the_image_and_a_change_that_may_leave_the_box(size: int, widths: tuple[int, ...]) -> None:
    network = DUNet(size, 2, widths, (1,) * len(widths)).eval()
    x = torch.rand(3, 2, size, size, generator=torch.Generator().manual_seed(0))
    nn.init.zeros_(network.last.weight)
    assert torch.equal(network(x), x)
    nn.init.constant_(network.last.weight, 5.0)
    assert network(x).amax() > 1


def test_a_stage_sees_the_one_above_it_and_the_skip_beside_it() -> None:
    """Two stages by hand, without normalisation's effect: eval mode of new statistics divides by sqrt(1 + 1e-5)."""
    network = DUNet(4, 1, (1, 1), (1, 1)).eval()
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    for layer in convolutions:
        nn.init.constant_(layer.weight, 1.0)
    x, scale = torch.ones(1, 1, 4, 4), (1 + 1e-5) ** -0.5
    first = nn.functional.conv2d(x, torch.ones(1, 1, 3, 3), padding=1) * scale
    second = nn.functional.conv2d(first, torch.ones(1, 1, 3, 3), stride=2, padding=1) * scale
    up = nn.functional.interpolate(second, (4, 4), mode="bilinear")
    expected = x + nn.functional.conv2d(up + first, torch.ones(1, 1, 3, 3), padding=1) * scale
    torch.testing.assert_close(network(x), expected)


def test_a_weights_file_rebuilds_it_and_nothing_else(tmp_path: Path) -> None:
    network = DUNet(8, 1, (4, 8), (1, 2)).eval()
    path = save_network(network, tmp_path / "w.safetensors")
    x = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(load_image_denoiser(str(path)).eval()(x), network(x))
    other = save_network(WideResNet(10, 1, image_size=8), tmp_path / "c.safetensors")
    with pytest.raises(ValueError, match="holds a WideResNet, which is no DUNet"):
        load_image_denoiser(str(other))


def test_stages_need_a_width_and_a_depth() -> None:
    with pytest.raises(ValueError, match="widths has 2 entries and depths 1"):
        DUNet(8, 1, (4, 8), (1,))
    with pytest.raises(ValueError, match="all must be at least 1"):
        DUNet(8, 1, (4, 0), (1, 1))
