"""The schedules of consistency training, as pure functions: which noise levels a step compares, and what the teacher
keeps.

Song et al. 2023, "Consistency models" (CT); Song and Dhariwal 2024, "Improved techniques for training consistency
models" (iCT); Geng et al. 2025, "Consistency models made easy" (ECT). Noise levels are standard deviations sigma at the
image's own scale.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Progress(NamedTuple):
    """How far a training is: ``step`` optimiser steps are done, of ``num_steps`` in all."""

    step: int
    num_steps: int


FINISHED = Progress(1, 1)
"""The end of a training. Validation measures at it, so that the losses of all epochs can be compared."""


def karras_sigmas(num_levels: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> Tensor:
    """(num_levels,) ascending noise levels, float64: sigma^(1/rho) is evenly spaced (Karras et al. 2022, equation 5).

    Raises:
        ValueError: if there are fewer than two levels.
    """
    if num_levels < 2:
        raise ValueError(f"num_levels is {num_levels}; consistency compares two levels, so there must be at least 2.")
    share = torch.linspace(0.0, 1.0, num_levels, dtype=torch.float64)
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return (low + share * (high - low)) ** rho


def adaptive_levels(progress: Progress, start: int = 2, end: int = 150) -> int:
    """CT's number of levels, ceil(sqrt(k/K ((s1 + 1)^2 - s0^2) + s0^2) - 1) + 1: from s0 = ``start`` to s1 + 1 =
    ``end`` + 1 (Song et al. 2023, appendix C)."""
    share = progress.step / progress.num_steps
    # Rounded before the ceiling: the root of a square may come out an ulp above it.
    return math.ceil(round(math.sqrt(share * ((end + 1) ** 2 - start**2) + start**2) - 1.0, 9)) + 1


def adaptive_decay(num_levels: int, start: int = 2, decay: float = 0.9) -> float:
    """CT's decay mu of the teacher, exp(s0 ln mu0 / (N - 1)), as in the authors' code; the paper divides by N, counting
    intervals as levels."""
    return math.exp(start * math.log(decay) / (num_levels - 1))


def doubling_levels(progress: Progress, start: int = 10, end: int = 1280) -> int:
    """iCT's number of levels, min(s0 2^floor(k / K'), s1) + 1 with K' = floor(K / (log2 floor(s1/s0) + 1)) (Song and
    Dhariwal 2024, table 1); of a training too short for that, K' is 1."""
    every = max(1, math.floor(progress.num_steps / (math.log2(end // start) + 1)))
    # Doubled no more often than it takes to pass the end: a power of a large quotient would be a huge number.
    doublings = min(progress.step // every, math.ceil(math.log2(end / start)))
    return min(start * 2**doublings, end) + 1


def lognormal_masses(sigmas: Tensor, mean: float = -1.1, std: float = 2.0) -> Tensor:
    """(N - 1,) probabilities of the intervals between ascending ``sigmas``: their mass under ln sigma ~ N(mean, std^2),
    divided by the sum (Song and Dhariwal 2024, equation 10)."""
    mass = torch.erf((sigmas.log() - mean) / (math.sqrt(2.0) * std)).diff()
    return mass / mass.sum()


def stage_of(progress: Progress, num_stages: int) -> int:
    """The stage, 0 ... num_stages - 1, of a training in stages of equal length."""
    return min(progress.step * num_stages // progress.num_steps, num_stages - 1)


def easy_earlier(t: Tensor, stage: int, q: float, k: float = 8.0, b: float = 1.0) -> Tensor:
    """ECT's earlier level of ``t``: r = max(0, t (1 - (1 + k sigmoid(-b t)) / q^(stage + 1))) (Geng et al. 2025,
    equation 17 and their code)."""
    closeness = (1.0 + k * torch.sigmoid(-b * t)) / q ** (stage + 1)
    return (t * (1.0 - closeness)).clamp_min(0.0)
