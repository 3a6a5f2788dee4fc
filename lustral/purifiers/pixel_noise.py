"""The noise that DAD adds to an image before its denoiser."""

import math
from typing import Literal, get_args

from torch import Tensor

from lustral.noise import NoiseStream

NoiseKind = Literal["rectified", "symmetric"]
"""rectified: as in DAD's code, where the noise itself is clipped to [0, 1]: it only ever brightens, is zero in half of
the pixels, and has mean 0.399 and standard deviation 0.584 of the nominal one. symmetric: Gaussian."""


def check_noise(std: float, kind: str) -> None:
    """Refuse a standard deviation or a kind of noise that there is not.

    Raises:
        ValueError: if there is none such.
    """
    if not 0 <= std < math.inf:
        raise ValueError(f"noise_std is {std}; it must be finite, and at least 0.")
    if kind not in get_args(NoiseKind):
        raise ValueError(f"noise_kind is {kind!r}; it may be {' or '.join(get_args(NoiseKind))}.")


def noised(x: Tensor, noise: NoiseStream, std: float, kind: NoiseKind) -> Tensor:
    """clip(x + r) of images ``x`` (B, C, H, W): r is ``std`` times standard normal noise, clipped to [0, 1] itself if
    it is rectified.

    Args:
        x: (B, C, H, W) in [0, 1].
        noise: B rows.
        std: nominal standard deviation, in the [0, 1] pixel range; 0 adds nothing.
        kind: the kind of noise.
    """
    if std == 0:
        return x
    r = std * noise.fork("pixel noise").normal(x.shape[1:], dtype=x.dtype)
    return (x + (r.clamp(0.0, 1.0) if kind == "rectified" else r)).clamp(0.0, 1.0)
