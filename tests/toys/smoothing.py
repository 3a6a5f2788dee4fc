"""Randomised smoothing (Cohen et al. 2019), small: Gaussian noise, and a count of very many draws."""

from collections.abc import Collection

from torch import Tensor

from lustral.diffusion import Context
from lustral.noise import NoiseStream
from lustral.purifiers import Purified, Purifier


class Smoothing(Purifier):
    """Adds noise and nothing else.

    Args:
        std: of the noise, in units of the [0, 1] pixel range.
    """

    def __init__(self, std: float) -> None:
        super().__init__()
        self.std = std

    def run(self, x: Tensor, context: Context, noise: NoiseStream, wants: Collection[str]) -> Purified:
        return Purified((x + self.std * noise.fork("smoothing").normal(x.shape[1:], dtype=x.dtype))[None])
