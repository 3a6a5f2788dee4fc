"""Noise schedules: x_t = alpha(t) x_0 + sigma(t) noise.

**One unit of time.** Everywhere in Lustral ``t`` is the *number of noising steps out of 1000*: 0 is a clean image,
``t = 100`` is "100 steps", "t* = 0.1" and "noise index 99" of the papers. A tabulated schedule of N levels takes
multiples of 1000 / N, a continuous one any number. The time label that a network expects (99, 99.9, ...) is computed in
its adapter, and used nowhere else.

At times of equal `noise_ratio` sigma / alpha, two schedules give the same noisy image up to a scale. So a network that
was trained on one schedule can be used on another.

All coefficients are float64 until they are multiplied with an image.
"""

import math
from abc import ABC, abstractmethod
from typing import Literal, get_args

import torch
from torch import Tensor

MAX_TIME = 1000


class NoiseSchedule(ABC):
    """A noise schedule: alpha(t), the factor of the clean image, and sigma(t), the standard deviation of the noise."""

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """The factor of the clean image at ``t`` in [0, 1000]; float64, the shape of ``t``."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """The standard deviation of the noise at ``t`` in [0, 1000]; float64, the shape of ``t``."""

    @abstractmethod
    def grid(self, t_star: float, num_steps: int) -> Tensor:
        """(num_steps + 1,) float64 times of a reverse process from ``t_star``, in descending order.

        Raises:
            ValueError: if ``t_star`` or ``num_steps`` is out of range.
        """

    @abstractmethod
    def time(self, noise_ratio: Tensor) -> Tensor:
        """The t whose sigma / alpha is ``noise_ratio`` (on a tabulated schedule: the nearest level); float64."""

    @abstractmethod
    def times(self, uniform: Tensor) -> Tensor:
        """The random times of training, float64, computed from ``uniform`` random numbers in (0, 1)."""

    def noise_ratio(self, t: Tensor) -> Tensor:
        """sigma / alpha: the standard deviation of the noise if the image is scaled back to its own range."""
        return self.sigma(t) / self.alpha(t)

    def perturb(self, x_0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_t from clean images ``x_0`` (B, C, H, W) in diffusion space, ``t`` () or (B,), and standard normal
        ``noise`` of their shape."""
        return coefficient(self.alpha(t), x_0) * x_0 + coefficient(self.sigma(t), x_0) * noise


class VariancePreserving(NoiseSchedule):
    """alpha(t)**2 + sigma(t)**2 = 1."""

    @abstractmethod
    def alpha_bar(self, t: Tensor) -> Tensor:
        """alpha(t)**2, the factor of the image's variance at ``t`` in [0, 1000]; float64, the shape of ``t``."""

    def alpha(self, t: Tensor) -> Tensor:
        return self.alpha_bar(t).sqrt()

    def sigma(self, t: Tensor) -> Tensor:
        return (1.0 - self.alpha_bar(t)).clamp_min(0.0).sqrt()


def coefficient(value: Tensor, image: Tensor) -> Tensor:
    """A float64 coefficient, () or (B,), in a form that multiplies ``image`` (B, C, H, W).

    A zero-dimensional CPU tensor can multiply images on any device, in the images' precision and without a transfer, so
    it is returned unchanged. A coefficient (B,) is moved to the image's device and dtype, and reshaped.
    """
    if value.ndim == 0:
        return value
    return value.to(device=image.device, dtype=image.dtype)[:, None, None, None]


def _check_steps(t_star: float, num_steps: int, levels: int = MAX_TIME) -> None:
    if not 1 <= t_star <= MAX_TIME:
        raise ValueError(f"t_star is {t_star}; it counts noising steps and lies in 1..{MAX_TIME}.")
    most = int(t_star * levels / MAX_TIME)
    if not 1 <= num_steps <= most:
        raise ValueError(f"num_steps is {num_steps}; it lies in 1..{most}, the noise levels up to t_star = {t_star}.")


class DiscreteSchedule(VariancePreserving):
    """A table of N noise levels. ``alpha_bar`` of level k is the product of k factors ``1 - beta``; of level 0 it is 1.

    Level k is at t = 1000 k / N, so it is noise index k - 1 of the papers.
    """

    def __init__(self, betas: Tensor) -> None:
        assert betas.dtype == torch.float64
        self.levels = len(betas)
        table = torch.cat((torch.ones(1, dtype=torch.float64), torch.cumprod(1.0 - betas, 0)))
        self._tables = {torch.device("cpu"): table}  # one copy per device, since several devices may use the schedule

    def level(self, t: Tensor) -> Tensor:
        """The number of the level at ``t``, int64: 0 is clean, k is noise index k - 1."""
        return (t.double() * (self.levels / MAX_TIME)).round().long()

    def alpha_bar(self, t: Tensor) -> Tensor:
        return self._table(t.device)[self.level(t)]

    def grid(self, t_star: float, num_steps: int) -> Tensor:
        """Evenly spaced levels from ``t_star`` down to 0, rounded up to whole levels."""
        _check_steps(t_star, num_steps, self.levels)
        # In integers: ceil(top * k / num_steps) for k = num_steps ... 0.
        top, k = round(t_star * self.levels / MAX_TIME), torch.arange(num_steps, -1, -1)
        return (-((-top * k) // num_steps)).double() * (MAX_TIME / self.levels)

    def time(self, noise_ratio: Tensor) -> Tensor:
        ratio = noise_ratio.double()
        table = self._table(ratio.device)
        ratios = ((1.0 - table) / table).sqrt()  # ascending
        above = torch.searchsorted(ratios, ratio.contiguous()).clamp(1, self.levels)
        nearer_below = ratio - ratios[above - 1] < ratios[above] - ratio
        return (above - nearer_below.long()).double() * (MAX_TIME / self.levels)

    def times(self, uniform: Tensor) -> Tensor:
        """Every level except the clean one, with equal probability."""
        return (uniform.double() * self.levels).ceil().clamp(1, self.levels) * (MAX_TIME / self.levels)

    def _table(self, device: torch.device) -> Tensor:
        if device not in self._tables:
            self._tables[device] = self._tables[torch.device("cpu")].to(device)
        return self._tables[device]


class LinearSchedule(DiscreteSchedule):
    """DDPM's schedule (Ho et al. 2020): 1000 variances, linear from ``beta_start`` to ``beta_end`` in (0, 1)."""

    def __init__(self, beta_start: float = 1e-4, beta_end: float = 2e-2) -> None:
        if not 0 < beta_start <= beta_end < 1:
            raise ValueError(f"beta_start = {beta_start} and beta_end = {beta_end} must rise within (0, 1).")
        self.beta_start, self.beta_end = beta_start, beta_end
        super().__init__(torch.linspace(beta_start, beta_end, MAX_TIME, dtype=torch.float64))


class CosineSchedule(DiscreteSchedule):
    """Nichol and Dhariwal 2021, equation 17: alpha_bar is a squared cosine; 4000 levels in their CIFAR-10 model.

    Level k of 4000 is at t = k / 4, so their "step 470" is t = 117.5 (sigma / alpha 0.198).
    """

    MAX_BETA = 0.999

    def __init__(self, num_levels: int = 4000) -> None:
        if num_levels < 1:
            raise ValueError(f"num_levels is {num_levels}; a schedule has at least 1.")
        self.num_levels = num_levels
        at = torch.arange(num_levels + 1, dtype=torch.float64) / num_levels
        left = ((at + 0.008) / 1.008 * math.pi / 2).cos().square()
        super().__init__((1.0 - left[1:] / left[:-1]).clamp_max(self.MAX_BETA))


class VPSchedule(VariancePreserving):
    """The continuous variance-preserving SDE (Song et al. 2021), dx = -beta/2 x dt + sqrt(beta) dw.

    beta(t) = ``beta_min`` + t/1000 (``beta_max`` - ``beta_min``); its discretisation is the linear schedule, from
    which it differs slightly (sigma 0.3221 against 0.3209 at t = 100).
    """

    FINAL_TIME = 1e-2  # t/1000 = 1e-5: the reverse SDE stops before the singularity of the score at 0

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0) -> None:
        if not 0 < beta_min <= beta_max:
            raise ValueError(f"beta_min = {beta_min} and beta_max = {beta_max} must be positive and rise.")
        self.beta_min, self.beta_max = beta_min, beta_max

    def alpha_bar(self, t: Tensor) -> Tensor:
        tau = t.double() / MAX_TIME
        return torch.exp(-0.5 * (self.beta_max - self.beta_min) * tau**2 - self.beta_min * tau)

    def beta(self, t: Tensor) -> Tensor:
        """beta, the SDE's rate per unit of t/1000, at ``t`` in [0, 1000]."""
        return self.beta_min + (self.beta_max - self.beta_min) * t.double() / MAX_TIME

    def grid(self, t_star: float, num_steps: int) -> Tensor:
        """Evenly spaced times from ``t_star``; the last one is ``FINAL_TIME`` instead of 0.

        Each time is computed from the number of its step. Accumulating steps in float32 would make the time labels of a
        network, which are rounded down, skip or repeat (150 steps would begin with 149, 148, 148).
        """
        _check_steps(t_star, num_steps)
        times = torch.arange(num_steps, -1, -1, dtype=torch.float64) * t_star / num_steps
        times[-1] = self.FINAL_TIME
        return times

    def time(self, noise_ratio: Tensor) -> Tensor:
        """The t whose sigma / alpha is ``noise_ratio``: alpha_bar = 1 / (1 + ratio**2) is a quadratic equation in t."""
        rise = self.beta_max - self.beta_min
        log = noise_ratio.double().square().log1p()  # -log alpha_bar
        # This form of the root has no cancellation where the noise is small, and holds for rise = 0.
        return MAX_TIME * 2.0 * log / ((self.beta_min**2 + 2.0 * rise * log).sqrt() + self.beta_min)

    def times(self, uniform: Tensor) -> Tensor:
        """Uniform between ``FINAL_TIME`` and 1000 (Song et al. 2021)."""
        return self.FINAL_TIME + uniform.double() * (MAX_TIME - self.FINAL_TIME)


class _VarianceExploding(NoiseSchedule):
    """alpha = 1: the image keeps its scale. As t goes from 1 to 1000, sigma goes from ``sigma_min`` to ``sigma_max``;
    below t = 1 sigma falls linearly to 0, so that a grid ends at a clean image, as in Karras et al. (2022)."""

    def __init__(self, sigma_min: float, sigma_max: float) -> None:
        if not 0 < sigma_min < sigma_max:
            raise ValueError(f"sigma_min = {sigma_min} and sigma_max = {sigma_max} must be positive and rise.")
        self.sigma_min, self.sigma_max = sigma_min, sigma_max

    @abstractmethod
    def _at(self, share: Tensor) -> Tensor:
        """sigma at ``share`` in [0, 1] of the way from sigma_min to sigma_max."""

    @abstractmethod
    def _share(self, sigma: Tensor) -> Tensor:
        """The inverse of `_at`."""

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t, dtype=torch.float64)

    def sigma(self, t: Tensor) -> Tensor:
        t = t.double()
        return torch.where(t < 1, t * self.sigma_min, self._at((t.clamp_min(1.0) - 1.0) / (MAX_TIME - 1)))

    def time(self, noise_ratio: Tensor) -> Tensor:
        sigma = noise_ratio.double()
        share = self._share(sigma.clamp_min(self.sigma_min))
        return torch.where(sigma < self.sigma_min, sigma / self.sigma_min, 1.0 + share * (MAX_TIME - 1))

    def grid(self, t_star: float, num_steps: int) -> Tensor:
        """``num_steps`` noise levels from ``t_star`` down to sigma_min, evenly spaced in t, and then 0."""
        _check_steps(t_star, num_steps)
        levels = torch.linspace(t_star, 1.0 if num_steps > 1 else t_star, num_steps, dtype=torch.float64)
        return torch.cat((levels, torch.zeros(1, dtype=torch.float64)))

    def times(self, uniform: Tensor) -> Tensor:
        """Uniform in t between sigma_min and sigma_max (log-uniform in sigma for `VESchedule`)."""
        return 1.0 + uniform.double() * (MAX_TIME - 1)


class VESchedule(_VarianceExploding):
    """The variance-exploding SDE (Song et al. 2021): sigma rises geometrically from 0.02 to 100 (EDM's units)."""

    def __init__(self, sigma_min: float = 0.02, sigma_max: float = 100.0) -> None:
        super().__init__(sigma_min, sigma_max)

    def _at(self, share: Tensor) -> Tensor:
        return self.sigma_min * (self.sigma_max / self.sigma_min) ** share

    def _share(self, sigma: Tensor) -> Tensor:
        return (sigma / self.sigma_min).log() / math.log(self.sigma_max / self.sigma_min)


class EDMSchedule(_VarianceExploding):
    """Karras et al. 2022, equation 5: sigma**(1/rho) rises linearly from ``sigma_min`` to ``sigma_max``, so that a grid
    of N steps from t = 1000 is theirs."""

    def __init__(self, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> None:
        super().__init__(sigma_min, sigma_max)
        if not rho > 0:
            raise ValueError(f"rho is {rho}; it must be positive.")
        self.rho = rho

    def _at(self, share: Tensor) -> Tensor:
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return (low + share * (high - low)) ** self.rho

    def _share(self, sigma: Tensor) -> Tensor:
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return (sigma ** (1 / self.rho) - low) / (high - low)


ScheduleName = Literal["vp", "linear", "cosine", "ve", "edm"]

SCHEDULES: dict[str, type[NoiseSchedule]] = {
    "vp": VPSchedule,
    "linear": LinearSchedule,
    "cosine": CosineSchedule,
    "ve": VESchedule,
    "edm": EDMSchedule,
}


def make_schedule(name: str) -> NoiseSchedule:
    """The schedule of this `ScheduleName` with its published settings.

    Raises:
        ValueError: if the name is unknown.
    """
    if name not in SCHEDULES:
        raise ValueError(f"schedule is {name!r}; it may be {', '.join(get_args(ScheduleName))}.")
    return SCHEDULES[name]()
