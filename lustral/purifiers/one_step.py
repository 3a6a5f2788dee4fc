"""One step of a consistency model as a purifier: the baseline of CMAP, and what its published attacks differentiate."""

from collections.abc import Collection

import torch
from torch import Tensor

from lustral.diffusion import Context, Denoiser, EDMSchedule, from_diffusion, to_diffusion
from lustral.diffusion.schedules import MAX_TIME
from lustral.noise import NoiseStream
from lustral.purifiers.base import Purified, Purifier


class OneStepConsistency(Purifier):
    """Noises the image to a level of Karras et al.'s grid, and takes one consistency step back. Nothing is clamped.

    Args:
        denoiser: the consistency model.
        level: t, the number of the level, from 1 (the lowest) to ``num_levels``; fractions are levels in between. The
            published attacks on CMAP take 5 of 18, sigma 0.1395.
        num_levels: of the grid.
        sigma_max: the highest level, as in the model's training; None is that of its schedule (80 of EDM's).

    Raises:
        ValueError: if an argument is out of its range.
    """

    def __init__(
        self, denoiser: Denoiser, level: float = 5, num_levels: int = 18, sigma_max: None | float = None
    ) -> None:
        super().__init__()
        if num_levels < 2 or not 1 <= level <= num_levels:
            raise ValueError(f"level is {level}; it lies in 1..num_levels = {num_levels}, which is at least 2.")
        top = torch.tensor(float(MAX_TIME), dtype=torch.float64)
        highest = float(denoiser.schedule.noise_ratio(top))
        # A consistency function knows no level below the end of its own trajectory.
        lowest = (denoiser.schedule if isinstance(denoiser.schedule, EDMSchedule) else EDMSchedule()).sigma_min
        if sigma_max is not None and not lowest < sigma_max <= highest * (1 + 1e-9):
            raise ValueError(f"sigma_max is {sigma_max}; the schedule's levels lie in ({lowest}, {highest:g}].")
        self.denoiser = denoiser.eval().requires_grad_(False)
        self.level, self.num_levels, self.sigma_max = level, num_levels, sigma_max
        grid = EDMSchedule(lowest, sigma_max or highest)
        share = (level - 1) / (num_levels - 1)
        self._t = denoiser.schedule.time(grid.sigma(torch.tensor(1.0 + share * (MAX_TIME - 1), dtype=torch.float64)))

    def derived(self) -> dict[str, float]:
        """``sigma``, the standard deviation of the noise over the scale of the image, in diffusion space [-1, 1]."""
        return {"sigma": round(float(self.denoiser.schedule.noise_ratio(self._t)), 6), "network_calls": 1.0}

    def run(self, x: Tensor, context: Context, noise: NoiseStream, wants: Collection[str]) -> Purified:
        z = noise.fork("forward").normal(x.shape[1:], dtype=x.dtype)
        noised = self.denoiser.schedule.perturb(to_diffusion(x), self._t, z)
        return Purified(from_diffusion(self.denoiser(noised, self._t))[None])
