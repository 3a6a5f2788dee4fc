"""One-step generators: a latent in, an image out, in one network call."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from lustral.diffusion.denoiser import Denoiser, from_diffusion, to_diffusion
from lustral.diffusion.schedules import MAX_TIME, coefficient
from lustral.noise import NoiseStream


class Generator(nn.Module, ABC):
    """Images from latents z ~ N(0, latent_std^2 I). Subclasses implement `forward`, and `inverted` where they can.

    Attributes:
        latent_shape: of one latent, without the batch.
        latent_std: standard deviation of the latents.
        image_shape: (C, H, W) of the images.
    """

    latent_shape: tuple[int, ...]
    latent_std: float
    image_shape: tuple[int, int, int]

    @abstractmethod
    def forward(self, z: Tensor) -> Tensor:
        """The images (B, C, H, W), within [0, 1], of latents ``z`` (B, *latent_shape)."""

    def inverted(self, x: Tensor, noise: Tensor) -> Tensor:
        """Latents (B, *latent_shape) from which images like ``x`` (B, C, H, W) in [0, 1] are likely to come, made with
        standard normal ``noise`` (B, *latent_shape).

        Raises:
            ValueError: if the generator has no such latents.
        """
        raise ValueError(f"{type(self).__name__} cannot be inverted: start the latents from noise (start: noise).")


class ConsistencyGenerator(Generator):
    """One step of a consistency model, from its highest noise level to the image (Song et al. 2023), clamped to [0, 1].

    With a diffusion model in place of the consistency model the image is the posterior mean at that level, nearly the
    mean of all data: a generator in name only.

    Args:
        denoiser: the consistency model, frozen.
        sigma_max: the noise level of the latents, sigma / alpha, as in the model's training; None is the highest of its
            schedule (80 of EDM's).

    Raises:
        ValueError: if sigma_max is not positive, or above the highest level of the schedule.
    """

    def __init__(self, denoiser: Denoiser, sigma_max: None | float = None) -> None:
        super().__init__()
        schedule, top = denoiser.schedule, torch.tensor(float(MAX_TIME), dtype=torch.float64)
        highest = float(schedule.noise_ratio(top))
        if sigma_max is not None and not 0 < sigma_max <= highest * (1 + 1e-9):
            raise ValueError(f"sigma_max is {sigma_max}; it lies in (0, {highest:g}], the levels of the schedule.")
        self.denoiser, self.sigma_max = denoiser.eval().requires_grad_(False), sigma_max
        self._t = top if sigma_max is None else schedule.time(torch.tensor(float(sigma_max), dtype=torch.float64))
        self.image_shape = self.latent_shape = denoiser.image_shape
        self.latent_std = float(schedule.sigma(self._t))

    def forward(self, z: Tensor) -> Tensor:
        return from_diffusion(self.denoiser(z, self._t)).clamp(0.0, 1.0)

    def inverted(self, x: Tensor, noise: Tensor) -> Tensor:
        """The image noised to the highest level."""
        alpha = coefficient(self.denoiser.schedule.alpha(self._t), x)
        return alpha * to_diffusion(x) + self.latent_std * noise


@torch.no_grad()
def generated(generator: Generator, noise: NoiseStream, rows: int = 128) -> Tensor:
    """One generated image for each row of ``noise``: (B, C, H, W) in [0, 1], from latents that are keyed by sample.

    Args:
        generator: in eval mode.
        noise: the stream of the latents, one row per sample.
        rows: samples per network call, at least 1.

    Raises:
        ValueError: if rows is below 1.
    """
    if rows < 1:
        raise ValueError(f"rows is {rows}; at least 1 sample a network call is needed.")
    latents = generator.latent_std * noise.fork("latents").normal(generator.latent_shape)
    return torch.cat([generator(part) for part in latents.split(rows)])
