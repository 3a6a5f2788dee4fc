"""Noise schedules: x_t = alpha(t) x_0 + sigma(t) noise.

**One unit of time.** Everywhere in Lustral ``t`` is the *number of noising steps out of 1000*: 0 is a clean image,
``t = 100`` is "100 steps", "t* = 0.1" and "noise index 99" of the papers. A discrete schedule takes whole numbers,
a continuous one any number. A network's own label (99, 99.9, ...) is made by its adapter and is seen nowhere else.

All coefficients are float64 until they meet an image.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

MAX_TIME = 1000


class NoiseSchedule(ABC):
    """A variance-preserving schedule: alpha(t)**2 + sigma(t)**2 = 1."""

    @abstractmethod
    def alpha_bar(self, t: Tensor) -> Tensor:
        """The share of the image's variance that is left at ``t`` in [0, 1000]; float64, the shape of ``t``."""

    @abstractmethod
    def grid(self, t_star: int, num_steps: int) -> Tensor:
        """(num_steps + 1,) float64 times that a reverse process from ``t_star`` visits, descending."""

    def alpha(self, t: Tensor) -> Tensor:
        """The factor of the clean image, sqrt(alpha_bar)."""
        return self.alpha_bar(t).sqrt()

    def sigma(self, t: Tensor) -> Tensor:
        """The standard deviation of the noise, sqrt(1 - alpha_bar)."""
        return (1.0 - self.alpha_bar(t)).clamp_min(0.0).sqrt()

    def perturb(self, x_0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_t from a clean image in diffusion space, ``t`` () or (B,), and standard normal noise of its shape."""
        return coefficient(self.alpha(t), x_0) * x_0 + coefficient(self.sigma(t), x_0) * noise


def coefficient(value: Tensor, image: Tensor) -> Tensor:
    """A float64 coefficient, () or (B,), made ready to multiply images (B, C, H, W).

    A zero-dimensional CPU tensor multiplies images on any device in their own precision and without a transfer,
    so it stays as it is; one value a row is cast and reshaped.
    """
    if value.ndim == 0:
        return value
    return value.to(device=image.device, dtype=image.dtype)[:, None, None, None]


def _check_steps(t_star: int, num_steps: int) -> None:
    if not 1 <= t_star <= MAX_TIME:
        raise ValueError(f"t_star is {t_star}; it counts noising steps and lies in 1..{MAX_TIME}.")
    if not 1 <= num_steps <= t_star:
        raise ValueError(f"num_steps is {num_steps}; it lies in 1..t_star = {t_star}.")


class DiscreteSchedule(NoiseSchedule):
    """DDPM's linear schedule (Ho et al. 2020): 1000 variances from ``beta_start`` to ``beta_end``.

    ``alpha_bar(k)`` is the product of the first k factors ``1 - beta_i``, so ``alpha_bar(0) = 1``.
    """

    def __init__(self, beta_start: float = 1e-4, beta_end: float = 2e-2) -> None:
        if not 0 < beta_start <= beta_end < 1:
            raise ValueError(f"beta_start = {beta_start} and beta_end = {beta_end} must rise within (0, 1).")
        self.beta_start, self.beta_end = beta_start, beta_end
        betas = torch.linspace(beta_start, beta_end, MAX_TIME, dtype=torch.float64)
        table = torch.cat((torch.ones(1, dtype=torch.float64), torch.cumprod(1.0 - betas, 0)))
        self._tables = {torch.device("cpu"): table}  # one a device: a table that moved would leave the others without

    def alpha_bar(self, t: Tensor) -> Tensor:
        if t.device not in self._tables:
            self._tables[t.device] = self._tables[torch.device("cpu")].to(t.device)
        return self._tables[t.device][t.long()]

    def grid(self, t_star: int, num_steps: int) -> Tensor:
        """Evenly spaced whole numbers from ``t_star`` down to 0 (rounded up where they do not divide)."""
        _check_steps(t_star, num_steps)
        # In integers: ceil(t_star * k / num_steps) for k = num_steps ... 0.
        k = torch.arange(num_steps, -1, -1)
        return (-((-t_star * k) // num_steps)).double()


class VPSchedule(NoiseSchedule):
    """The continuous variance-preserving SDE (Song et al. 2021), dx = -beta/2 x dt + sqrt(beta) dw.

    beta(t) = ``beta_min`` + t/1000 (``beta_max`` - ``beta_min``); its discretisation is the linear schedule, from
    which it differs slightly (sigma 0.3221 against 0.3209 at t = 100).
    """

    FINAL_TIME = 1e-2  # the reverse SDE stops short of the singularity of the score, at t = 1e-5 of 1

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0) -> None:
        if not 0 < beta_min <= beta_max:
            raise ValueError(f"beta_min = {beta_min} and beta_max = {beta_max} must be positive and rise.")
        self.beta_min, self.beta_max = beta_min, beta_max

    def alpha_bar(self, t: Tensor) -> Tensor:
        tau = t.double() / MAX_TIME
        return torch.exp(-0.5 * (self.beta_max - self.beta_min) * tau**2 - self.beta_min * tau)

    def beta(self, t: Tensor) -> Tensor:
        """The SDE's rate at ``t``, per unit of t/1000."""
        return self.beta_min + (self.beta_max - self.beta_min) * t.double() / MAX_TIME

    def grid(self, t_star: int, num_steps: int) -> Tensor:
        """Evenly spaced times from ``t_star``; the last one is ``FINAL_TIME`` instead of 0.

        Counted in whole steps, never accumulated: accumulation in float32 makes a network's floored label
        jump (150 steps begin with 149, 148, 148).
        """
        _check_steps(t_star, num_steps)
        times = torch.arange(num_steps, -1, -1, dtype=torch.float64) * t_star / num_steps
        times[-1] = self.FINAL_TIME
        return times
