"""PSNR, SSIM and distances against closed forms; nothing of an image depends on those beside it."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lustral.evaluation.image_quality import CEILING, alignment, feature_distance, likeness, psnr, ssim
from lustral.evaluation.plane import fitted_plane
from tests.contracts import generator, images

SHAPES = [(1, 8, 8), (3, 16, 12), (1, 3, 3), (3, 32, 32)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equal_images_are_as_alike_as_can_be(shape: tuple[int, ...]) -> None:
    x = images(3, shape)
    assert psnr(x, x).tolist() == [CEILING] * 3
    torch.testing.assert_close(ssim(x, x), torch.ones(3))


def test_psnr_is_the_mean_square_of_a_known_noise() -> None:
    x = images(4, (3, 8, 8)) * 0.5
    level = torch.tensor([0.01, 0.05, 0.1, 0.2])
    noise = torch.where(torch.rand(x.shape, generator=generator(1)) < 0.5, -1.0, 1.0)  # of mean square 1
    found = psnr(x + level[:, None, None, None] * noise, x)
    torch.testing.assert_close(found, -20 * level.log10(), rtol=1e-4, atol=0)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_ssim_of_constant_images_is_that_of_their_luminance(shape: tuple[int, ...]) -> None:
    """Without any variance the second factor is C2 / C2; C1 = 0.01 ** 2 for images in [0, 1]."""
    a, b = 0.3, 0.8
    found = ssim(torch.full((2, *shape), a), torch.full((2, *shape), b))
    expected = (2 * a * b + 1e-4) / (a * a + b * b + 1e-4)
    torch.testing.assert_close(found, torch.full((2,), expected), rtol=1e-3, atol=0)


def test_ssim_has_the_largest_window_that_fits() -> None:
    """7 x 7 in images of 8 x 8, reflected at the edge: by its definition, window by window."""
    x, y = (images(1, (1, 8, 8), seed, torch.float64) for seed in (0, 1))
    line = torch.exp(-0.5 * ((torch.arange(7, dtype=torch.float64) - 3) / (3 / 3.5)) ** 2)
    weight = torch.outer(line, line) / line.sum() ** 2
    padded = [F.pad(z, (3, 3, 3, 3), mode="reflect") for z in (x, y)]

    def of_window(row: int, column: int) -> Tensor:
        a, b = (z[0, 0, row : row + 7, column : column + 7] for z in padded)
        mean_a, mean_b = (weight * a).sum(), (weight * b).sum()
        var_a, var_b = (weight * (a - mean_a) ** 2).sum(), (weight * (b - mean_b) ** 2).sum()
        both = (weight * (a - mean_a) * (b - mean_b)).sum()
        top = (2 * mean_a * mean_b + 1e-4) * (2 * both + 9e-4)
        return top / ((mean_a**2 + mean_b**2 + 1e-4) * (var_a + var_b + 9e-4))

    expected = torch.stack([of_window(row, column) for row in range(8) for column in range(8)]).mean()
    torch.testing.assert_close(ssim(x, y)[0], expected)


def test_ssim_refuses_images_without_a_window() -> None:
    with pytest.raises(ValueError, match="3 x 3 pixels or more, not 2 x 5"):
        ssim(torch.zeros(1, 1, 2, 5), torch.zeros(1, 1, 2, 5))


def test_what_is_beside_an_image_does_not_matter() -> None:
    """torchmetrics would take the range of the whole batch."""
    x, y = images(3, (1, 8, 8)) * 0.2, images(3, (1, 8, 8), 1) * 0.2
    among = likeness(torch.cat((x, torch.ones(1, 1, 8, 8))), torch.cat((y, torch.zeros(1, 1, 8, 8))))
    for name, values in likeness(x, y).items():
        torch.testing.assert_close(among[name][:3], values)


def test_images_are_compared_as_they_would_be_shown() -> None:
    x = torch.full((1, 1, 8, 8), 1.7)
    assert likeness(x, torch.ones_like(x))["psnr"].item() == CEILING


def test_feature_distance_is_euclidean() -> None:
    a = torch.tensor([[0.0, 0.0, 1.0], [1.0, 2.0, 3.0]])
    assert feature_distance(a, a).tolist() == [0.0, 0.0]
    assert feature_distance(a, a + torch.tensor([3.0, 4.0, 0.0])).tolist() == [5.0, 5.0]


def test_alignment_is_a_cosine_image_by_image() -> None:
    added = torch.zeros(4, 1, 2, 2)
    added[:, 0, 0, 0] = 0.1
    removed = torch.zeros(4, 1, 2, 2)
    removed[0], removed[1, 0, 1, 1], removed[2] = 3 * added[0], 0.2, -added[2]
    assert alignment(added, removed).tolist() == pytest.approx([1.0, 0.0, -1.0, 0.0])


def test_a_plane_has_the_directions_of_largest_variance() -> None:
    """Points on a turned ellipse in 5 dimensions: its axes, in proportion to the squares of their lengths."""
    basis, _ = torch.linalg.qr(torch.randn(5, 5, generator=generator(), dtype=torch.float64))
    angle = torch.linspace(0, 2 * math.pi, 41, dtype=torch.float64)[:-1]
    points = 4 * angle.cos()[:, None] * basis[0] + 2 * angle.sin()[:, None] * basis[1] + 7
    plane = fitted_plane(points)
    assert plane.shares == pytest.approx((0.8, 0.2))
    for found, axis in zip(plane.axes.T, basis[:2], strict=True):
        torch.testing.assert_close(found, axis * axis[axis.abs().argmax()].sign())
    torch.testing.assert_close(plane(points).norm(dim=1).amax(), torch.tensor(4.0, dtype=torch.float64))
    again = fitted_plane(points.flip(0))
    torch.testing.assert_close(again.axes, plane.axes)


def test_one_image_spans_no_plane() -> None:
    with pytest.raises(ValueError, match="span no plane: take 2 images or more"):
        fitted_plane(torch.zeros(1, 5))


class _Mean(nn.Module):
    """Stands in for LPIPS: the mean difference of what it is shown."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        assert x.shape[1] == y.shape[1] == 3
        return (x - y).mean((1, 2, 3), keepdim=True)


def test_lpips_is_shown_coloured_images_in_its_own_range() -> None:
    x, y = torch.full((2, 1, 32, 32), 0.75), torch.full((2, 1, 32, 32), 0.25)
    found = likeness(x, y, _Mean())
    assert found["lpips"].tolist() == pytest.approx([1.0, 1.0])  # twice the difference in [0, 1]
    assert "lpips" not in likeness(x, y)
    with pytest.raises(ValueError, match="LPIPS compares images of 32 pixels or more, not 8 x 8"):
        likeness(images(1, (1, 8, 8)), images(1, (1, 8, 8)), _Mean())
