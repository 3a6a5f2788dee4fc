"""Noise: Gaussian, shot and impulse (Hendrycks & Dietterich 2019)."""

import torch
from torch import Tensor

from lustral.corruptions.severities import Constants
from lustral.noise import NoiseStream


def gaussian_noise(x: Tensor, constants: Constants, noise: NoiseStream) -> Tensor:
    """Adds noise of a standard deviation to every value."""
    (std,) = constants
    return x + std * noise.normal(x.shape[1:], dtype=x.dtype)


def shot_noise(x: Tensor, constants: Constants, noise: NoiseStream) -> Tensor:
    """Poisson noise of so many photons in a white pixel."""
    (photons,) = constants
    return poisson(photons * x, noise.uniform(x.shape[1:], dtype=x.dtype)) / photons


def impulse_noise(x: Tensor, constants: Constants, noise: NoiseStream) -> Tensor:
    """Salt and pepper: a share of the values, each by itself, becomes 1 or 0, either with equal probability."""
    (share,) = constants
    drawn = noise.uniform(x.shape[1:], dtype=x.dtype)
    return torch.where(drawn < share, (drawn < share / 2).to(x.dtype), x)


_REACH = 8


def poisson(rate: Tensor, uniform: Tensor) -> Tensor:
    """Poisson variates by inversion: the smallest k with P(K <= k) >= ``uniform``.

    P(K <= k) is the regularised upper incomplete gamma function Q(k + 1, rate). k is searched by bisection within 8 of
    the Cornish-Fisher expansion of the quantile.

    Args:
        rate: any shape, float64, at least 0.
        uniform: the same shape, in (0, 1).
    """
    z = torch.special.ndtri(uniform)
    guess = (rate + z * rate.sqrt() + (z**2 - 1) / 6).round()
    low, high = (guess - _REACH).clamp_min(-1), guess.clamp_min(0) + _REACH  # P(K <= low) < uniform <= P(K <= high)
    while bool((high - low > 1).any()):
        middle = ((low + high) / 2).floor()
        enough = torch.special.gammaincc(middle.clamp_min(0) + 1, rate) >= uniform
        enough = enough & (middle >= 0)
        low, high = torch.where(enough, low, middle), torch.where(enough, middle, high)
    return torch.where(rate > 0, high, torch.zeros_like(high))
