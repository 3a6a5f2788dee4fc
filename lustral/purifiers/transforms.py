"""Input transformations as purifiers: bit depth (Xu et al., "Feature squeezing", 2018) and blur. docs/transforms.md."""

from collections.abc import Collection
from typing import Literal, get_args

import torch
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from lustral.diffusion import Context
from lustral.noise import NoiseStream
from lustral.purifiers.base import Purified, Purifier
from lustral.purifiers.rounding import STANDS, Stand

Rounding = Literal["hard", Stand]


class BitDepth(Purifier):
    """Reduces every pixel to 2^bits evenly spaced values.

    A rounded image has a derivative of zero, so the exact gradient is blind and not offered.

    Args:
        bits: of a pixel and channel, 1 to 8.
        rounding: "hard"; for attacks to differentiate (through a `Variant`) "straight_through", the same images with
            the identity as Jacobian, or "soft", near images whose gradient is exact (see `rounding`).

    Raises:
        ValueError: if ``bits`` or ``rounding`` is none of these.
    """

    random = False

    def __init__(self, bits: int = 4, rounding: Rounding = "hard") -> None:
        super().__init__()
        if not 1 <= bits <= 8:
            raise ValueError(f"bits is {bits}; it lies in 1..8.")
        if rounding not in ("hard", *STANDS):
            raise ValueError(f"rounding is {rounding!r}; it may be hard, {', '.join(get_args(Stand))}.")
        self.bits, self.rounding = bits, rounding
        self._round = STANDS.get(rounding, torch.round)  # type: ignore[arg-type]
        if rounding == "hard":
            self.gradient_modes = ("bpda", "detached")
            self.instead = (
                "Through rounding it would be 0: attack with a surrogate Variant of changes {rounding: "
                "straight_through} or {rounding: soft}."
            )

    def run(self, x: Tensor, context: Context, noise: NoiseStream, wants: Collection[str]) -> Purified:
        top = 2**self.bits - 1
        return Purified((self._round(x * top) / top)[None])


class GaussianBlur(Purifier):
    """Blurs with a Gaussian window, reflecting at the edges; differentiated exactly.

    Args:
        sigma: standard deviation in pixels, positive.
        radius: of the window in pixels, which is 2 radius + 1 wide; less than the image's side.

    Raises:
        ValueError: if an option is out of its range; when images are purified, if they are too small.
    """

    random = False

    def __init__(self, sigma: float = 1.0, radius: int = 2) -> None:
        super().__init__()
        if not sigma > 0 or radius < 1:
            raise ValueError(f"sigma = {sigma} must be positive, and radius = {radius} at least 1.")
        self.sigma, self.radius = sigma, radius

    def run(self, x: Tensor, context: Context, noise: NoiseStream, wants: Collection[str]) -> Purified:
        if min(x.shape[-2:]) <= self.radius:
            raise ValueError(
                f"radius is {self.radius}, but images of {x.shape[-2]} x {x.shape[-1]} pixels are reflected by at most "
                f"{min(x.shape[-2:]) - 1}: choose a smaller radius."
            )
        return Purified(gaussian_blur(x, [2 * self.radius + 1] * 2, [self.sigma, self.sigma])[None])
