"""Structural similarity is that of a Gaussian window moved over the image."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lustral.purifiers.similarity import C1, C2, SIGMA, ssim_map
from tests.contracts import images


@pytest.mark.parametrize(("shape", "size"), [((2, 14, 12), 11), ((1, 8, 8), 7), ((1, 5, 9), 5)])
def test_it_is_that_of_a_window_convolved_with_the_image(shape: tuple[int, int, int], size: int) -> None:
    x, y = (images(3, shape, seed=seed, dtype=torch.float64) for seed in (0, 1))
    line = torch.exp(-0.5 * ((torch.arange(size, dtype=torch.float64) - size // 2) / SIGMA) ** 2)
    window = torch.outer(line, line) / torch.outer(line, line).sum()

    def mean(z: Tensor) -> Tensor:
        return F.conv2d(z.flatten(0, 1)[:, None], window[None, None], padding=size // 2).view_as(z)

    a, b = mean(x), mean(y)
    top = (2 * a * b + C1) * (2 * (mean(x * y) - a * b) + C2)
    bottom = (a**2 + b**2 + C1) * (mean(x * x) - a**2 + mean(y * y) - b**2 + C2)
    torch.testing.assert_close(ssim_map(x, y), top / bottom, rtol=1e-10, atol=1e-10)


def test_an_images_bits_do_not_depend_on_its_place() -> None:
    x, y = (images(13, (1, 8, 8), seed=seed) for seed in (0, 1))
    order = torch.randperm(13, generator=torch.Generator().manual_seed(0))
    assert torch.equal(ssim_map(x[order], y[order]), ssim_map(x, y)[order])
