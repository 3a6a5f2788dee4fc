"""Reverse steps from time ``t`` to an earlier ``s``, as short pure functions of (x_t, x_0 estimate or score, noise).

A `Solver` is such a step with its options, ready to be unrolled: it makes exactly one network call a step.
"""

from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor

from lustral.diffusion.denoiser import Denoiser
from lustral.diffusion.schedules import MAX_TIME, VPSchedule, coefficient


def euler_maruyama(x: Tensor, score: Tensor, beta: Tensor, h: Tensor, noise: Tensor) -> Tensor:
    """x + h (beta/2 x + beta score) + sqrt(beta h) noise: one step of the reverse VP-SDE (Song et al. 2021,
    equation 6)."""
    drift = coefficient(0.5 * beta * h, x) * x + coefficient(beta * h, x) * score
    return x + drift + coefficient((beta * h).sqrt(), x) * noise


def ddim(x_0: Tensor, eps: Tensor, abar_t: Tensor, abar_s: Tensor, eta: float, noise: Tensor) -> Tensor:
    """Song et al. 2021, equation 12: eta = 0 is deterministic, eta = 1 ancestral sampling with beta tilde."""
    c_noise = eta * ((1 - abar_t / abar_s) * (1 - abar_s) / (1 - abar_t)).clamp_min(0.0).sqrt()
    c_eps = (1 - abar_s - c_noise**2).clamp_min(0.0).sqrt()
    mean = coefficient(abar_s.sqrt(), x_0) * x_0 + coefficient(c_eps, x_0) * eps
    return mean + coefficient(c_noise, x_0) * noise


def ancestral(
    x: Tensor, x_0: Tensor, abar_t: Tensor, abar_s: Tensor, variance: Literal["small", "large"], noise: Tensor
) -> Tensor:
    """A draw from q(x_s | x_t, x_0), Ho et al. 2020, equation 7; no noise is added where s = 0.

    ``variance`` small is the posterior's own, beta tilde; large is beta.
    """
    ratio = abar_t / abar_s  # the alpha of the step; its beta is 1 - ratio
    c_0 = abar_s.sqrt() * (1 - ratio) / (1 - abar_t)
    c_x = ratio.sqrt() * (1 - abar_s) / (1 - abar_t)
    beta = (1 - ratio) * (1 - abar_s) / (1 - abar_t) if variance == "small" else 1 - ratio
    std = torch.where(abar_s < 1, beta.clamp_min(0.0).sqrt(), 0.0)
    return coefficient(c_0, x) * x_0 + coefficient(c_x, x) * x + coefficient(std, x) * noise


class Solver(ABC):
    """A reverse step with its options.

    Attributes:
        random: whether a step adds noise.
    """

    random: bool = True

    def check(self, denoiser: Denoiser) -> None:  # noqa: B027  (most can follow any)
        """Refuse a denoiser whose schedule this solver cannot follow."""

    @abstractmethod
    def step(self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, noise: Tensor) -> Tensor:
        """x_s from x_t, (B, C, H, W) in diffusion space, with one network call; ``t > s``, () or (B,)."""


class EulerMaruyama(Solver):
    """The reverse VP-SDE, DiffPure's main method: everything is evaluated at the larger time of the step."""

    def check(self, denoiser: Denoiser) -> None:
        if not isinstance(denoiser.schedule, VPSchedule):
            raise ValueError(
                "The EulerMaruyama solver follows the continuous VP-SDE, but the denoiser's schedule is "
                f"{type(denoiser.schedule).__name__}: choose the Ancestral or DDIM solver, or a VP denoiser."
            )

    def step(self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, noise: Tensor) -> Tensor:
        assert isinstance(denoiser.schedule, VPSchedule)
        return euler_maruyama(x, denoiser.score(x, t), denoiser.schedule.beta(t), (t - s) / MAX_TIME, noise)


class DDIM(Solver):
    """DDIM with ``eta`` in [0, 1] (Song et al. 2021); the update of Lee and Kim's GNSP too."""

    def __init__(self, eta: float = 0.0) -> None:
        if not 0 <= eta <= 1:
            raise ValueError(f"eta is {eta}; it lies in [0, 1] (0 is DDIM, 1 is DDPM).")
        self.eta = eta
        self.random = eta > 0

    def step(self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, noise: Tensor) -> Tensor:
        x_0 = denoiser(x, t)
        eps = denoiser.schedule_noise(x, x_0, t)
        abar_t, abar_s = denoiser.schedule.alpha_bar(t), denoiser.schedule.alpha_bar(s)
        return ddim(x_0, eps, abar_t, abar_s, self.eta, noise)


class Ancestral(Solver):
    """DDPM's ancestral sampling (Ho et al. 2020), on any grid.

    Args:
        variance: "small" (beta tilde) or "large" (beta).
        clip_denoised: clamp the estimate of x_0 to [-1, 1], as guided-diffusion does; its gradient is then zero
            where it saturates.
    """

    def __init__(self, variance: Literal["small", "large"] = "small", clip_denoised: bool = False) -> None:
        if variance not in ("small", "large"):
            raise ValueError(f"variance is {variance!r}; it may be small or large.")
        self.variance: Literal["small", "large"] = variance
        self.clip_denoised = clip_denoised

    def step(self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, noise: Tensor) -> Tensor:
        x_0 = denoiser(x, t)
        if self.clip_denoised:
            x_0 = x_0.clamp(-1.0, 1.0)
        abar_t, abar_s = denoiser.schedule.alpha_bar(t), denoiser.schedule.alpha_bar(s)
        return ancestral(x, x_0, abar_t, abar_s, self.variance, noise)
