"""Sampling of a consistency function: on Gaussian data one step and several give the law that the formulas say."""

import math

import pytest
import torch

from lustral.diffusion import EDMSchedule, MultistepConsistency, VPSchedule
from lustral.diffusion.sampling import sample
from tests.contracts import SmoothDenoiser, stream
from tests.toys.consistency import DEVIATION, GaussianConsistency

COUNT = 4000


@pytest.mark.parametrize("sigmas", [[], [0.8], [3.0, 0.5]], ids=["one", "two", "three"])
def test_samples_have_the_law_of_the_data(sigmas: list[float]) -> None:
    """The variance after a step from N(0, v + sigma^2 - sigma_min^2) is its factor squared times that."""
    denoiser = GaussianConsistency()
    images = sample(denoiser, stream(COUNT), MultistepConsistency(sigmas), len(sigmas) + 1, rows=1500)
    assert images.shape == (COUNT, 1, 2, 2)
    variance, lowest = 0.0, 0.01
    for i, sigma in enumerate([20.0, *sigmas]):
        before = variance + sigma**2 - (lowest**2 if i else 0.0)
        variance = before * (DEVIATION**2 + lowest**2) / (DEVIATION**2 + sigma**2)
    assert variance == pytest.approx(DEVIATION**2, rel=2e-3)
    inside = (images > 0) & (images < 1)  # within 1.67 standard deviations, clamped otherwise
    share = math.erf(1.0 / math.sqrt(2.0 * variance))
    assert float(inside.double().mean()) == pytest.approx(share, abs=5 * math.sqrt(0.1 / images.numel()))


def test_later_noise_is_fresh_and_keyed() -> None:
    denoiser, noise = GaussianConsistency(), stream(7)
    one, two = (sample(denoiser, noise, MultistepConsistency(s), len(s) + 1) for s in ([], [2.0]))
    assert (one - two).abs().max() > 0.05
    order = torch.tensor([4, 0])
    torch.testing.assert_close(sample(denoiser, noise.select(order), MultistepConsistency([2.0]), 2), two[order])


def test_one_step_is_one_call_from_pure_noise() -> None:
    denoiser, noise = GaussianConsistency(), stream(3)
    z = noise.fork("start").normal((1, 2, 2))
    direct = denoiser(20.0 * z, torch.tensor(1000.0, dtype=torch.float64)).detach()
    torch.testing.assert_close(sample(denoiser, noise, MultistepConsistency(), 1), ((direct + 1) / 2).clamp(0, 1))


def test_what_cannot_be_sampled_is_refused() -> None:
    with pytest.raises(ValueError, match="must be positive and descend"):
        MultistepConsistency([0.5, 0.8])
    with pytest.raises(ValueError, match="num_steps is 3"):
        sample(GaussianConsistency(), stream(2), MultistepConsistency([0.8]), 3)
    with pytest.raises(ValueError, match="t_start 900"):
        sample(GaussianConsistency(), stream(2), MultistepConsistency(), 1, t_start=900)
    with pytest.raises(ValueError, match=r"sigmas has 30\.0"):
        sample(GaussianConsistency(), stream(2), MultistepConsistency([30.0]), 2)
    for schedule in (EDMSchedule(), VPSchedule()):
        with pytest.raises(ValueError, match="no consistency function"):
            sample(SmoothDenoiser(schedule), stream(2), MultistepConsistency(), 1)
