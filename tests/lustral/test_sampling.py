"""Sampling: on Gaussian data the law of the samples is known in closed form, and it is that of the data."""

import itertools

import numpy as np
import pytest
import torch

from lustral.diffusion import DDIM, Ancestral, Denoiser, EDMSchedule, EulerMaruyama, Heun, LinearSchedule, VPSchedule
from lustral.diffusion.sampling import sample
from tests import closed_form
from tests.closed_form import FULL, MEAN, Affine, GaussianDenoiser
from tests.contracts import SmoothDenoiser, stream

SMALL_MEAN, SMALL = 0.1 * MEAN, 0.05 * FULL  # within [-1, 1] by more than six standard deviations: none is clamped
SOLVERS = {
    "ddim": (DDIM(), closed_form.ddim_step(0.0)),
    "ancestral": (Ancestral(), closed_form.ancestral_step("small")),
    "euler_maruyama": (EulerMaruyama(), closed_form.euler_maruyama_step),
}
NUM_SAMPLES = 4000


def _drawn(denoiser: Denoiser, solver: object, num_steps: int) -> np.ndarray:
    """(n, 4) samples in diffusion space."""
    images = sample(denoiser, stream(NUM_SAMPLES), solver, num_steps, rows=1500)  # type: ignore[arg-type]
    assert images.shape == (NUM_SAMPLES, 1, 2, 2)
    return 2.0 * images.flatten(1).double().numpy() - 1.0


def _assert_law(drawn: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> None:
    """Within five standard errors, of the mean and of every entry of the covariance."""
    variances = np.diag(covariance)
    error = np.abs(drawn.mean(0) - mean) / np.sqrt(variances / len(drawn))
    spread = np.sqrt((np.outer(variances, variances) + covariance**2) / (len(drawn) - 1))
    assert error.max() < 5, error
    assert (np.abs(np.cov(drawn.T) - covariance) / spread).max() < 5


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("num_steps", [40, 400])
def test_samples_have_the_law_of_the_composed_steps_and_many_steps_that_of_the_data(name: str, num_steps: int) -> None:
    solver, step = SOLVERS[name]
    times = [1000 * k / num_steps for k in range(num_steps, 0, -1)] + [0.01]
    law = Affine(np.zeros((4, 4)), np.zeros(4), (np.sqrt(1 - closed_form.alpha_bar("vp", 1000)) * np.eye(4),))
    for t, s in itertools.pairwise(times):
        law = law.then(step("vp", SMALL_MEAN, SMALL, t, s))
    drawn = _drawn(GaussianDenoiser(VPSchedule(), SMALL_MEAN, SMALL), solver, num_steps)
    _assert_law(drawn, law.offset, law.covariance)
    bias = np.abs(law.covariance - SMALL).max() / SMALL.max()
    assert (bias < 0.12) == (num_steps == 400), bias


def test_a_schedule_that_keeps_the_images_scale_starts_at_its_own_noise() -> None:
    denoiser = GaussianDenoiser(EDMSchedule(), SMALL_MEAN, SMALL)
    _assert_law(_drawn(denoiser, Heun(), 40), SMALL_MEAN, SMALL)


@pytest.mark.parametrize("solver", [DDIM(), Ancestral()], ids=["deterministic", "random"])
def test_a_sample_depends_on_its_key_alone(solver: DDIM | Ancestral) -> None:
    """Not on the others, their order, or how many go through the network at once."""
    denoiser, noise = SmoothDenoiser(VPSchedule()).float(), stream(7)
    whole = sample(denoiser, noise, solver, 10)
    order = torch.tensor([4, 0, 6])
    torch.testing.assert_close(sample(denoiser, noise.select(order), solver, 10, rows=2), whole[order])
    assert (whole[0] - whole[1]).abs().max() > 1e-3
    assert not torch.equal(sample(denoiser, noise.fork("other"), solver, 10), whole)


def test_samples_are_images_without_a_graph() -> None:
    class Far(SmoothDenoiser):
        def forward(self, x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return 50.0 * super().forward(x_t, t)

    images = sample(Far(LinearSchedule()).float(), stream(3), Ancestral(), 3)
    assert not images.requires_grad
    assert images.dtype == torch.float32
    assert float(images.min()) == 0
    assert float(images.max()) == 1


def test_what_cannot_be_sampled_is_refused() -> None:
    denoiser = SmoothDenoiser(LinearSchedule())
    with pytest.raises(ValueError, match="EulerMaruyama"):
        sample(denoiser, stream(2), EulerMaruyama(), 10)
    with pytest.raises(ValueError, match="t_start is 300, where the image is still"):
        sample(denoiser, stream(2), DDIM(), 10, t_start=300)
    with pytest.raises(ValueError, match="rows is 0"):
        sample(denoiser, stream(2), DDIM(), 10, rows=0)
    with pytest.raises(ValueError, match="num_steps"):
        sample(denoiser, stream(2), DDIM(), 1001)
