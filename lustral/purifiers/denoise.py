"""DAD's denoiser alone: every image gets noise and goes through it."""

from collections.abc import Collection

from torch import Tensor, nn

from lustral.diffusion import Context
from lustral.noise import NoiseStream
from lustral.purifiers.base import Purified, Purifier
from lustral.purifiers.pixel_noise import NoiseKind, check_noise, noised


class Denoise(Purifier):
    """g(clip(x + r)): noise, and an image-to-image network. The result is not clipped, as in the authors' code.

    Args:
        denoiser: g, from (B, C, H, W) to (B, C, H, W), such as `lustral.networks.load_image_denoiser`.
        noise_std: nominal standard deviation of r, in the [0, 1] pixel range; 0 adds nothing.
        noise_kind: "rectified" as published, or "symmetric" (see `NoiseKind`).

    Raises:
        ValueError: if an option is out of its range.
    """

    def __init__(self, denoiser: nn.Module, noise_std: float = 0.25, noise_kind: NoiseKind = "rectified") -> None:
        super().__init__()
        check_noise(noise_std, noise_kind)
        self.denoiser, self.noise_std = denoiser.eval().requires_grad_(False), noise_std
        self.noise_kind: NoiseKind = noise_kind
        self.random = noise_std > 0

    def train(self, mode: bool = True) -> "Denoise":
        """The denoiser stays in evaluation mode: otherwise its batch normalisation would mix images, and drift."""
        super().train(mode)
        self.denoiser.eval()
        return self

    def denoised(self, x: Tensor, noise: NoiseStream) -> Tensor:
        """(B, C, H, W) from images ``x`` (B, C, H, W), row by row."""

        def step(x: Tensor, noise: NoiseStream) -> Tensor:
            return self.denoiser(noised(x, noise, self.noise_std, self.noise_kind))

        return self.rows(step, x, noise)

    def run(self, x: Tensor, context: Context, noise: NoiseStream, wants: Collection[str]) -> Purified:
        return Purified(self.denoised(x, noise)[None])
