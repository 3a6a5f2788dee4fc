"""Training losses of diffusion models: one value per sample, with times and noise from a keyed stream."""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from lustral.diffusion.denoiser import Denoiser
from lustral.diffusion.schedules import MAX_TIME, DiscreteSchedule, coefficient
from lustral.diffusion.solvers import added_variance, learned_std, level, posterior, posterior_variance
from lustral.noise import NoiseStream


class DiffusionLoss(ABC):
    """What a network of a diffusion process descends: one number an image."""

    def check(self, denoiser: Denoiser) -> None:  # noqa: B027  (most take any)
        """Refuse a denoiser that this loss cannot train.

        Raises:
            ValueError: if it cannot.
        """

    @abstractmethod
    def __call__(self, denoiser: Denoiser, x_0: Tensor, noise: NoiseStream) -> Tensor:
        """(B,) losses for ``x_0`` (B, C, H, W) in diffusion space, at times and with noise from ``noise`` (B rows)."""


class PosteriorLoss(DiffusionLoss):
    """The error of a denoiser, as a posterior mean, at a random (t, noise) for each image."""

    @abstractmethod
    def times(self, denoiser: Denoiser, noise: NoiseStream) -> Tensor:
        """(B,) random times of the denoiser's schedule, float64, from a stream of B rows."""

    @abstractmethod
    def at(self, denoiser: Denoiser, x_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """(B,) losses, means over pixels, for ``x_0`` (B, C, H, W) in diffusion space, noised with ``eps`` to time
        ``t`` (B,)."""

    def __call__(self, denoiser: Denoiser, x_0: Tensor, noise: NoiseStream) -> Tensor:
        t = self.times(denoiser, noise.fork("time"))
        return self.at(denoiser, x_0, t, noise.fork("noise").normal(x_0.shape[1:], dtype=x_0.dtype))


class SimpleLoss(PosteriorLoss):
    """|eps - eps(x_t, t)|^2 at uniformly random times of the denoiser's schedule.

    On a tabulated schedule this is the simple loss of Ho et al. (2020); in continuous time it is the loss of Score-SDE
    for VP and VE (Song et al. 2021), Karras et al.'s "VP" and "VE" losses, with weight 1 / sigma^2 on the error of the
    posterior mean.
    """

    def times(self, denoiser: Denoiser, noise: NoiseStream) -> Tensor:
        return denoiser.schedule.times(noise.uniform((), dtype=torch.float64))

    def at(self, denoiser: Denoiser, x_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        x_t = denoiser.schedule.perturb(x_0, t, eps)
        return _mean_square(denoiser.noise(x_t, t) - eps)


class EDMLoss(PosteriorLoss):
    """Karras et al. 2022: (sigma^2 + sd^2) / (sigma sd)^2 |D - x_0|^2 with ln sigma ~ N(mean, std^2).

    Args:
        mean: mean of ln sigma (P_mean).
        std: standard deviation of ln sigma (P_std), positive.
        sigma_data: sd, the standard deviation of the images in diffusion space, positive; it must equal the network's.

    Raises:
        ValueError: if a number is out of its range; in `check`, if the network has another sigma_data.
    """

    def __init__(self, mean: float = -1.2, std: float = 1.2, sigma_data: float = 0.5) -> None:
        if not (std > 0 and sigma_data > 0):
            raise ValueError(f"std = {std} and sigma_data = {sigma_data} must be positive.")
        self.mean, self.std, self.sigma_data = mean, std, sigma_data

    def check(self, denoiser: Denoiser) -> None:
        own = getattr(denoiser, "sigma_data", self.sigma_data)
        if own != self.sigma_data:
            raise ValueError(
                f"The loss takes sigma_data = {self.sigma_data} and the denoiser {own}: give both the same, the "
                "standard deviation of the images."
            )

    def times(self, denoiser: Denoiser, noise: NoiseStream) -> Tensor:
        sigma = (self.mean + self.std * noise.normal((), dtype=torch.float64)).exp()
        last = denoiser.schedule.noise_ratio(torch.tensor(float(MAX_TIME), dtype=torch.float64))
        return denoiser.schedule.time(sigma.clamp_max(float(last)))

    def at(self, denoiser: Denoiser, x_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        error = denoiser(denoiser.schedule.perturb(x_0, t, eps), t) - x_0
        sigma = denoiser.schedule.noise_ratio(t)
        root = (sigma.square() + self.sigma_data**2).sqrt() / (sigma * self.sigma_data)
        return _mean_square(coefficient(root, x_0) * error)


class HybridLoss(SimpleLoss):
    """The simple loss plus ``vlb_weight`` times the variational bound, which trains the learned variances only (Nichol
    and Dhariwal 2021, equation 16).

    Args:
        vlb_weight: lambda, positive.

    Raises:
        ValueError: if it is not positive; in `check`, if the denoiser has no learned variance on a tabulated schedule.
    """

    def __init__(self, vlb_weight: float = 1e-3) -> None:
        if not vlb_weight > 0:
            raise ValueError(f"vlb_weight is {vlb_weight}; it must be positive (else take SimpleLoss).")
        self.vlb_weight = vlb_weight

    def check(self, denoiser: Denoiser) -> None:
        if not (denoiser.learns_variance and isinstance(denoiser.schedule, DiscreteSchedule)):
            raise ValueError(
                f"HybridLoss trains a learned variance on a table of levels; this {type(denoiser).__name__} on a "
                f"{type(denoiser.schedule).__name__} has none: take SimpleLoss, or an ADMDenoiser with "
                "learned_variance and preconditioning linear or cosine."
            )

    def at(self, denoiser: Denoiser, x_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        assert isinstance(denoiser.schedule, DiscreteSchedule)
        x_t = denoiser.schedule.perturb(x_0, t, eps)
        mean, v = denoiser.mean_and_variance(x_t, t)
        simple = _mean_square(denoiser.schedule_noise(x_t, mean, t) - eps)
        # The bound is a sum over all levels, estimated from one of them; the mean is detached from it.
        bound = denoiser.schedule.levels * bound_term(denoiser, x_0, x_t, mean.detach(), v, t)
        return simple + self.vlb_weight * bound


def bound_term(denoiser: Denoiser, x_0: Tensor, x_t: Tensor, mean: Tensor, v: Tensor, t: Tensor) -> Tensor:
    """(B,) terms of the variational bound, in bits per pixel and channel: KL(q(x_s | x_t, x_0) || p(x_s | x_t)), with s
    one level below t; at the lowest level, minus the log-likelihood of the 8-bit image (Ho et al. 2020, section 3.3).
    """
    schedule = denoiser.schedule
    assert isinstance(schedule, DiscreteSchedule)
    one = MAX_TIME / schedule.levels
    at_t, at_s = level(schedule, t), level(schedule, (t - one).clamp_min(0.0))
    lowest = at_s.sigma == 0
    # beta tilde of the lowest level is 0 and is replaced by that of the next level, as in Nichol and Dhariwal (2021).
    above = level(schedule, torch.where(lowest, t + one, t))
    tilde = torch.where(lowest, posterior_variance(above, at_t), posterior_variance(at_t, at_s))
    std = learned_std(v, added_variance(at_t, at_s), tilde)

    predicted = posterior(x_t, mean, at_t, at_s)
    log_ratio = 2.0 * std.log() - coefficient(tilde.log(), v)  # of the predicted variance to the true one
    distance = (posterior(x_t, x_0, at_t, at_s) - predicted) / std
    kl = 0.5 * (log_ratio - 1.0 + (-log_ratio).exp() + distance.square())
    nats = torch.where(
        lowest.to(x_0.device), -log_likelihood(x_0, predicted, std).flatten(1).mean(1), kl.flatten(1).mean(1)
    )
    return nats / math.log(2.0)


def log_likelihood(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """The elementwise log-likelihood of 8-bit images ``x`` in diffusion space: a normal density integrated over the bin
    of each grey level. The outermost bins extend to infinity (Ho et al. 2020, equation 13)."""
    half_bin = 1.0 / 255.0
    upper, lower = (x + half_bin - mean) / std, (x - half_bin - mean) / std
    # Above the mean both probabilities are close to 1, and their difference cancels: subtract the mirrored ones there.
    mirrored = lower > 0
    high, low = torch.where(mirrored, -lower, upper), torch.where(mirrored, -upper, lower)
    inside = (torch.special.ndtr(high) - torch.special.ndtr(low)).clamp_min(1e-12).log()
    at_ends = torch.where(x < -0.999, torch.special.log_ndtr(upper), torch.special.log_ndtr(-lower))
    return torch.where(x.abs() > 0.999, at_ends, inside)


def _mean_square(error: Tensor) -> Tensor:
    return error.square().flatten(1).mean(1)
