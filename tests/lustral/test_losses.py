"""Diffusion losses: on Gaussian data the optimal denoiser's loss is known; the bound against straight-line formulas."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import Tensor

from lustral.diffusion import (
    Ancestral,
    CosineSchedule,
    Denoiser,
    DiffusionLoss,
    EDMLoss,
    EDMSchedule,
    HybridLoss,
    LinearSchedule,
    NoiseSchedule,
    SimpleLoss,
    VESchedule,
    VPSchedule,
)
from lustral.diffusion.losses import bound_term, log_likelihood
from tests.closed_form import DIAGONAL, MEAN, GaussianDenoiser
from tests.contracts import SmoothDenoiser, generator, stream

COUNT = 4000


class LearnedVariance(GaussianDenoiser):
    """The optimal mean, and a variance that is the same share v everywhere."""

    learns_variance = True

    def __init__(self, schedule: NoiseSchedule, v: float = 0.3) -> None:
        super().__init__(schedule, MEAN, DIAGONAL)
        self.v = v

    def mean_and_variance(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        mean = self(x_t, t)
        return mean, torch.full_like(mean, self.v)


def _data(count: int = COUNT) -> Tensor:
    deviations = torch.from_numpy(np.sqrt(np.diag(DIAGONAL)))
    drawn = torch.randn(count, 4, generator=generator(), dtype=torch.float64) * deviations + torch.from_numpy(MEAN)
    return drawn.view(-1, 1, 2, 2)


@pytest.mark.parametrize(
    "schedule", [LinearSchedule(), CosineSchedule(), VPSchedule(), VESchedule(), EDMSchedule()], ids=type
)
def test_the_simple_loss_of_the_optimal_denoiser(schedule: NoiseSchedule) -> None:
    """At time t it is the mean of alpha^2 v / (alpha^2 v + sigma^2) over the variances v."""
    denoiser = GaussianDenoiser(schedule, MEAN, DIAGONAL)
    loss, noise = SimpleLoss(), stream(COUNT)
    found = loss(denoiser, _data(), noise).detach()
    t = loss.times(denoiser, noise.fork("time"))
    alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
    signal = alpha**2 * torch.tensor(np.diag(DIAGONAL))
    expected = (signal / (signal + sigma**2)).mean(1)
    error = (found - expected).mean() / ((found - expected).std() / math.sqrt(COUNT))
    assert abs(float(error)) < 4
    assert t.unique().numel() > 500


@pytest.mark.parametrize("schedule", [EDMSchedule(), VPSchedule()], ids=type)
def test_the_edm_loss_of_the_optimal_denoiser(schedule: NoiseSchedule) -> None:
    """(sigma^2 + sd^2) / (sigma sd)^2 times the posterior variance v sigma^2 / (v + sigma^2); ln sigma is normal."""
    denoiser = GaussianDenoiser(schedule, MEAN, DIAGONAL)
    loss, noise = EDMLoss(-1.0, 0.8, sigma_data=0.6), stream(COUNT)
    found = loss(denoiser, _data(), noise).detach()
    sigma = schedule.noise_ratio(loss.times(denoiser, noise.fork("time")))
    assert float(sigma.log().mean()) == pytest.approx(-1.0, abs=4 * 0.8 / math.sqrt(COUNT))
    assert float(sigma.log().std()) == pytest.approx(0.8, rel=0.05)
    v = torch.tensor(np.diag(DIAGONAL))
    squared = sigma[:, None] ** 2
    expected = ((squared + 0.36) / (squared * 0.36) * v * squared / (v + squared)).mean(1)
    error = (found - expected).mean() / ((found - expected).std() / math.sqrt(COUNT))
    assert abs(float(error)) < 4


def test_the_bound_is_the_divergence_of_two_normals() -> None:
    """Ho et al. 2020, equation 8, in numpy, at a level in the middle."""
    schedule, k, v = LinearSchedule(), 300, 0.3
    denoiser, x_0 = LearnedVariance(schedule, v), _data(5)
    t = torch.full((5,), float(k), dtype=torch.float64)
    x_t = schedule.perturb(x_0, t, torch.randn(x_0.shape, generator=generator(1), dtype=torch.float64))
    mean, share = denoiser.mean_and_variance(x_t, t)
    found = bound_term(denoiser, x_0, x_t, mean, share, t).detach()

    betas = np.linspace(1e-4, 0.02, 1000)
    abar = np.cumprod(1 - betas)
    beta, before, now = betas[k - 1], abar[k - 2], abar[k - 1]
    tilde = beta * (1 - before) / (1 - now)

    def posterior(clean: np.ndarray) -> np.ndarray:
        a, b = np.sqrt(before) * beta / (1 - now), np.sqrt(1 - beta) * (1 - before) / (1 - now)
        return a * clean + b * x_t.numpy()

    variance = np.exp(v * np.log(beta) + (1 - v) * np.log(tilde))
    gap = posterior(x_0.numpy()) - posterior(mean.detach().numpy())
    kl = 0.5 * (np.log(variance / tilde) - 1 + tilde / variance + gap**2 / variance)
    np.testing.assert_allclose(found.numpy(), kl.reshape(5, -1).mean(1) / np.log(2), rtol=1e-8)


def test_the_lowest_level_is_the_likelihood_of_eight_bit_values() -> None:
    schedule, v = LinearSchedule(), 0.3
    x_0 = (torch.randint(0, 256, (6, 1, 2, 2), generator=generator()).double() / 255) * 2 - 1
    x_0[0, 0, 0] = torch.tensor([-1.0, 1.0])
    denoiser, t = LearnedVariance(schedule, v), torch.ones(6, dtype=torch.float64)
    x_t = schedule.perturb(x_0, t, torch.randn(x_0.shape, generator=generator(1), dtype=torch.float64))
    mean, share = denoiser.mean_and_variance(x_t, t)
    found = bound_term(denoiser, x_0, x_t, mean, share, t).detach()
    betas = np.linspace(1e-4, 0.02, 1000)
    abar = np.cumprod(1 - betas)
    tilde = betas[1] * (1 - abar[0]) / (1 - abar[1])  # of the second level
    std = np.exp(0.5 * (v * np.log(betas[0]) + (1 - v) * np.log(tilde)))
    values, centre = x_0.numpy(), mean.detach().numpy()
    high = np.where(values > 0.999, np.inf, values + 1 / 255)
    low = np.where(values < -0.999, -np.inf, values - 1 / 255)
    probability = norm.cdf((high - centre) / std) - norm.cdf((low - centre) / std)
    expected = -np.log(np.maximum(probability, 1e-12)).reshape(6, -1).mean(1) / np.log(2)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6)


def test_probabilities_of_all_values_add_up_to_one() -> None:
    values = (torch.arange(256).double() / 255 * 2 - 1)[:, None].float()
    mean, std = torch.tensor([[-0.98, 0.2, 0.97]]), torch.tensor([[0.05, 0.01, 0.2]])
    total = log_likelihood(values, mean, std).exp().sum(0)
    torch.testing.assert_close(total, torch.ones(3), rtol=1e-5, atol=1e-5)


def test_the_bound_trains_the_variance_and_not_the_mean() -> None:
    denoiser = LearnedVariance(LinearSchedule())
    x_0, noise = _data(8), stream(8)
    v = torch.full((8, 1, 2, 2), 0.4, dtype=torch.float64, requires_grad=True)
    denoiser.mean_and_variance = lambda x, t: (denoiser(x, t), v)  # type: ignore[method-assign]
    hybrid = HybridLoss()(denoiser, x_0, noise).sum()
    own = torch.autograd.grad(hybrid, [denoiser.mean, v])
    simple = torch.autograd.grad(SimpleLoss()(denoiser, x_0, noise).sum(), denoiser.mean)[0]
    torch.testing.assert_close(own[0], simple)
    assert own[1].abs().min() > 0


@pytest.mark.parametrize("loss", [SimpleLoss(), EDMLoss(), HybridLoss()], ids=type)
def test_a_loss_is_keyed_by_its_rows(loss: DiffusionLoss) -> None:
    denoiser, x_0 = LearnedVariance(LinearSchedule()), _data(6)
    whole = loss(denoiser, x_0, stream(6))
    rows = torch.tensor([4, 1])
    torch.testing.assert_close(loss(denoiser, x_0[rows], stream(6).select(rows)), whole[rows])


def _refused(loss: DiffusionLoss, denoiser: Denoiser) -> None:
    loss.check(denoiser)


def test_losses_refuse_denoisers_they_cannot_train() -> None:
    with pytest.raises(ValueError, match="has none: take SimpleLoss"):
        _refused(HybridLoss(), SmoothDenoiser(LinearSchedule()))
    with pytest.raises(ValueError, match="on a VPSchedule has none"):
        _refused(HybridLoss(), LearnedVariance(VPSchedule()))
    other = SmoothDenoiser(EDMSchedule())
    other.sigma_data = 0.7  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"sigma_data = 0\.5 and the denoiser 0\.7"):
        _refused(EDMLoss(), other)
    with pytest.raises(ValueError, match="vlb_weight is 0"):
        HybridLoss(0)
    with pytest.raises(ValueError, match="must be positive"):
        EDMLoss(std=0)


@pytest.mark.parametrize("v", [0.0, 0.3, 1.0])
def test_ancestral_sampling_takes_the_learned_variance(v: float) -> None:
    """v = 0 is beta tilde, v = 1 beta, and between them a geometric mean; the last step adds nothing."""
    schedule = LinearSchedule()
    denoiser, x = LearnedVariance(schedule, v), _data(3)
    noise = torch.randn(x.shape, generator=generator(5), dtype=torch.float64)
    t, s = torch.tensor(200.0, dtype=torch.float64), torch.tensor(150.0, dtype=torch.float64)

    def added(solver: Ancestral) -> Tensor:
        return solver.step(denoiser, x, t, s, noise) - solver.step(denoiser, x, t, s, torch.zeros_like(x))

    geometric = added(Ancestral("small")).abs() ** (1 - v) * added(Ancestral("large")).abs() ** v
    torch.testing.assert_close(added(Ancestral("learned")).abs(), geometric)
    zero = torch.tensor(0.0, dtype=torch.float64)
    last = [Ancestral("learned").step(denoiser, x, s, zero, n) for n in (noise, torch.zeros_like(x))]
    assert torch.equal(*last)
    torch.testing.assert_close(last[0], denoiser(x, s))


def test_a_learned_variance_must_have_been_learned() -> None:
    with pytest.raises(ValueError, match="has learned none"):
        Ancestral("learned").check(SmoothDenoiser(LinearSchedule()))
    with pytest.raises(ValueError, match="has learned no variance"):
        SmoothDenoiser(LinearSchedule()).mean_and_variance(_data(1), torch.tensor(5.0))
