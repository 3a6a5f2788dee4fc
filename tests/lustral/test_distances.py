"""Distances between images: LPIPS against torchmetrics, with random weights in the place of torchvision's."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity
from torchvision.models import squeezenet1_1

from lustral.diffusion import LPIPS, SquaredDistance
from tests.contracts import images


def test_lpips_compares_enlarged_images_in_float32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(ValueError, match=r"needs torchvision's weights at .*squeezenet1_1.*: get them from https"):
        LPIPS("squeeze")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = squeezenet1_1()
    (tmp_path / "checkpoints").mkdir()
    torch.save(network.state_dict(), tmp_path / "checkpoints" / "squeezenet1_1-b8a52dc0.pth")
    distance, measure = LPIPS("squeeze"), LearnedPerceptualImagePatchSimilarity("squeeze", reduction="mean")
    one, two = (2.0 * images(2, (1, 16, 16), seed) - 1.0 for seed in (0, 1))
    one.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = distance(one, two)
    assert found.dtype == torch.float32
    large = [F.interpolate(x, size=(224, 224), mode="bilinear").expand(-1, 3, -1, -1).clamp(-1, 1) for x in (one, two)]
    for i in range(2):
        torch.testing.assert_close(found[i], measure(large[0][i : i + 1], large[1][i : i + 1]), rtol=1e-4, atol=1e-6)
        measure.reset()
    assert torch.autograd.grad(found.sum(), one)[0].abs().max() > 0
    with pytest.raises(ValueError, match="net is 'resnet'; it may be alex, vgg, squeeze"):
        LPIPS("resnet")  # type: ignore[arg-type]


def test_the_squared_distance_is_a_mean_over_pixels() -> None:
    one, two = torch.zeros(2, 1, 2, 2), torch.zeros(2, 1, 2, 2)
    two[1, 0, 0, 0] = 2.0
    assert SquaredDistance()(one, two).tolist() == [0.0, 1.0]
