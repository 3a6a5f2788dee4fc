"""Gaussian data of mean 0, whose consistency function is known."""

import torch
from torch import Tensor, nn

from lustral.diffusion import Denoiser, EDMSchedule

DEVIATION = 0.6


class GaussianConsistency(Denoiser):
    """f(x, sigma) = x sqrt((sd^2 + sigma_min^2) / (sd^2 + sigma^2)) to the power of ``bend``: 1 is the consistency
    function of N(0, sd^2); the identity at sigma_min holds for all."""

    is_consistency_function = True

    def __init__(self, sigma_max: float = 20.0, bend: float = 1.0, shape: tuple[int, int, int] = (1, 2, 2)) -> None:
        super().__init__()
        self.schedule, self.image_shape = EDMSchedule(0.01, sigma_max), shape
        self.bend = nn.Parameter(torch.tensor(bend, dtype=torch.float64))

    def factor(self, sigma: Tensor) -> Tensor:
        """f(x, sigma) / x."""
        end = DEVIATION**2 + self.schedule.sigma_min**2  # type: ignore[attr-defined]
        return (end / (DEVIATION**2 + sigma.square())).sqrt() ** self.bend

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        return (self.factor(self.schedule.sigma(t)).reshape(-1, 1, 1, 1) * x_t).to(x_t.dtype)
