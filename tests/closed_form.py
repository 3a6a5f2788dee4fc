"""Gaussian data, for which everything a diffusion purifier does is known in closed form.

For x_0 ~ N(mean, covariance) the posterior mean of x_0 is affine in x_t. So every reverse step is affine in
the state and its noise, and so is the whole purified image. `diffpure_law` composes these maps in numpy,
from the literature's formulas and from schedules written down again here: nothing of the code under test is
called.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from lustral.diffusion import Denoiser, LinearSchedule, NoiseSchedule, VPSchedule

SHAPE = (1, 2, 2)
MEAN = np.array([0.3, -0.2, 0.1, 0.4])
_FACTOR = np.array([[0.6, 0.0, 0.0, 0.0], [0.2, 0.5, 0.0, 0.0], [-0.1, 0.3, 0.4, 0.0], [0.1, 0.0, 0.2, 0.3]])
FULL = _FACTOR @ _FACTOR.T
DIAGONAL = np.diag([0.04, 0.2, 0.5, 0.9])
SCHEDULES: dict[str, type[NoiseSchedule]] = {"vp": VPSchedule, "discrete": LinearSchedule}


class GaussianDenoiser(Denoiser):
    """E[x_0 | x_t] of x_0 ~ N(mean, covariance), in diffusion space.

    Both are parameters, so that what holds for networks (frozen, no own gradient) can be asked of it.
    """

    def __init__(
        self, schedule: NoiseSchedule, mean: np.ndarray = MEAN, covariance: np.ndarray = FULL, shape=SHAPE
    ) -> None:
        super().__init__()
        self.schedule, self.image_shape = schedule, shape
        self.mean = nn.Parameter(torch.from_numpy(mean))
        variances, axes = np.linalg.eigh(covariance)
        self.variances, self.axes = (
            nn.Parameter(torch.from_numpy(variances)),
            nn.Parameter(torch.from_numpy(axes)),
        )

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (of(t).reshape(-1, 1) for of in (self.schedule.alpha, self.schedule.sigma))  # (1 or B, 1)
        gain = alpha * self.variances / (alpha.square() * self.variances + sigma.square())
        centred = (x_t.flatten(1).double() - alpha * self.mean) @ self.axes
        x_0 = self.mean + (centred * gain) @ self.axes.T
        return x_0.view_as(x_t).to(x_t.dtype)


class GaussianConsistency(GaussianDenoiser):
    """The end of the probability flow from (x_t, t): along each axis of the covariance the deviation from the mean,
    counted in standard deviations (sqrt(variance + sigma^2) at t), stays the same. EDM's schedule, whose alpha is 1."""

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        sigma = self.schedule.sigma(t).reshape(-1, 1)
        along = (x_t.flatten(1).double() - self.mean) @ self.axes
        x_0 = self.mean + (along * (self.variances / (self.variances + sigma.square())).sqrt()) @ self.axes.T
        return x_0.view_as(x_t).to(x_t.dtype)


def alpha_bar(schedule: str, t: float) -> float:
    """The share of variance left after ``t`` of 1000 steps: Ho et al. 2020; Song et al. 2021, appendix B."""
    if schedule == "discrete":
        assert t == int(t)
        return float(np.prod(1.0 - np.linspace(1e-4, 0.02, 1000)[: int(t)]))
    tau = t / 1000
    return float(np.exp(-0.25 * tau**2 * (20.0 - 0.1) - 0.5 * tau * 0.1) ** 2)


@dataclass(frozen=True)
class Affine:
    """x -> matrix x + offset + sum of noises[k] z_k, on flattened images."""

    matrix: np.ndarray
    offset: np.ndarray
    noises: tuple[np.ndarray, ...] = ()

    def then(self, later: "Affine") -> "Affine":
        return Affine(
            later.matrix @ self.matrix,
            later.matrix @ self.offset + later.offset,
            (*(later.matrix @ noise for noise in self.noises), *later.noises),
        )

    @property
    def covariance(self) -> np.ndarray:
        return sum((noise @ noise.T for noise in self.noises), np.zeros_like(self.matrix))


def posterior_mean(mean: np.ndarray, covariance: np.ndarray, abar: float) -> tuple[np.ndarray, np.ndarray]:
    """E[x_0 | x_t] = matrix x_t + offset, by conditioning a joint Gaussian."""
    a = np.sqrt(abar)
    gain = a * covariance @ np.linalg.inv(abar * covariance + (1 - abar) * np.eye(len(mean)))
    return gain, mean - a * gain @ mean


def euler_maruyama_step(schedule: str, mean: np.ndarray, covariance: np.ndarray, t: float, s: float) -> Affine:
    """One Euler step of the reverse VP-SDE, with the score of N(a mean, a^2 covariance + sigma^2)."""
    assert schedule == "vp"
    one, abar = np.eye(len(mean)), alpha_bar(schedule, t)
    beta, h = 0.1 + 19.9 * t / 1000, (t - s) / 1000
    precision = np.linalg.inv(abar * covariance + (1 - abar) * one)
    matrix = one + h * (0.5 * beta * one - beta * precision)
    return Affine(matrix, h * beta * precision @ mean * np.sqrt(abar), (np.sqrt(beta * h) * one,))


def ddim_step(eta: float) -> Callable[..., Affine]:
    """Song et al. 2021, equation 12, with equation 16 for the noise."""

    def step(schedule: str, mean: np.ndarray, covariance: np.ndarray, t: float, s: float) -> Affine:
        one, abar_t, abar_s = np.eye(len(mean)), alpha_bar(schedule, t), alpha_bar(schedule, s)
        gain, offset = posterior_mean(mean, covariance, abar_t)
        noise = eta * np.sqrt((1 - abar_s) / (1 - abar_t)) * np.sqrt(1 - abar_t / abar_s)
        towards = np.sqrt(1 - abar_s - noise**2) / np.sqrt(1 - abar_t)
        matrix = np.sqrt(abar_s) * gain + towards * (one - np.sqrt(abar_t) * gain)
        shift = np.sqrt(abar_s) * offset - towards * np.sqrt(abar_t) * offset
        return Affine(matrix, shift, (noise * one,) if eta else ())

    return step


def ancestral_step(variance: str) -> Callable[..., Affine]:
    """q(x_s | x_t, x_0) by Bayes' rule: precision weights of what x_0 and x_t say about x_s."""

    def step(schedule: str, mean: np.ndarray, covariance: np.ndarray, t: float, s: float) -> Affine:
        one, abar_t, abar_s = np.eye(len(mean)), alpha_bar(schedule, t), alpha_bar(schedule, s)
        gain, offset = posterior_mean(mean, covariance, abar_t)
        if abar_s == 1.0:  # x_s is x_0 itself
            return Affine(gain, offset, (0 * one,))
        step_abar = abar_t / abar_s
        from_x_0, from_x_t = 1 / (1 - abar_s), step_abar / (1 - step_abar)  # precisions
        share_0 = np.sqrt(abar_s) * from_x_0 / (from_x_0 + from_x_t)
        share_t = from_x_t / np.sqrt(step_abar) / (from_x_0 + from_x_t)
        std = np.sqrt(1 / (from_x_0 + from_x_t) if variance == "small" else 1 - step_abar)
        return Affine(share_0 * gain + share_t * one, share_0 * offset, (std * one,))

    return step


def diffpure_law(
    step: Callable[..., Affine],
    schedule: str,
    times: list[float],
    mean: np.ndarray = MEAN,
    covariance: np.ndarray = FULL,
    forward: str | None = None,
) -> Affine:
    """The purified image as an affine map of the image, the forward noise and each step's noise."""
    one = np.eye(len(mean))
    abar = alpha_bar(forward or schedule, times[0])
    law = Affine(2 * one, -np.ones(len(mean)))
    law = law.then(Affine(np.sqrt(abar) * one, 0 * mean, (np.sqrt(1 - abar) * one,)))
    for t, s in itertools.pairwise(times):
        law = law.then(step(schedule, mean, covariance, t, s))
    return law.then(Affine(0.5 * one, 0.5 * np.ones(len(mean))))
