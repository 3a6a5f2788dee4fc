"""Weather: snow, frost, fog and brightness (Hendrycks & Dietterich 2019)."""

import torch
from torch import Tensor

from lustral.corruptions.blurs import angle
from lustral.corruptions.pixels import motion_blurred, plasma, zoomed
from lustral.corruptions.severities import Constants
from lustral.noise import NoiseStream

_LUMA = (0.299, 0.587, 0.114)
_ICE = (0.86, 0.93, 1.0)  # a bluish white
FROST_DECAY = 1.6


def snow(x: Tensor, constants: Constants, noise: NoiseStream) -> Tensor:
    """Falling flakes, smeared along their way, over an image that is whitened a little."""
    mean, std, zoom, threshold, radius, sigma, share = constants
    flakes = zoomed(mean + std * noise.fork("flakes").normal((1, *x.shape[-2:]), dtype=x.dtype), zoom)
    flakes = torch.where(flakes < threshold, 0.0, flakes).clamp(0, 1)
    flakes = motion_blurred(flakes, radius, sigma, angle(noise, -135.0, -45.0))
    pale = torch.maximum(x, grey(x) * 1.5 + 0.5)
    return share * x + (1 - share) * pale + flakes + flakes.rot90(2, (-2, -1))


def frost(x: Tensor, constants: Constants, noise: NoiseStream) -> Tensor:
    """Ice on the lens: the image darkened, and frost added.

    The authors crop photographs of frost, which cannot be shipped here; in their place stands `ice`, a texture that is
    made. So numbers for frost compare with each other, and not with those of the published files.
    """
    image, share = constants
    return image * x + share * ice(x, noise)


def ice(x: Tensor, noise: NoiseStream) -> Tensor:
    """(B, C, H, W) in [0, 1]: crystals as the ridges of two fractal landscapes, bluish where there are three
    channels; of the size of ``x``."""
    ridges = [
        1 - (2 * landscape(x, noise.fork("ice", name), FROST_DECAY) - 1).abs()
        for name in ("coarse ridges", "fine ridges")
    ]
    crystals = torch.maximum(ridges[0], ridges[1]) ** 3
    tint = torch.tensor(_ICE if x.shape[1] == 3 else (1.0,) * x.shape[1], dtype=x.dtype, device=x.device)
    return crystals[:, None] * tint[:, None, None]


def fog(x: Tensor, constants: Constants, noise: NoiseStream) -> Tensor:
    """A fractal haze is added, and the whole darkened to the image's own maximum."""
    thickness, decay = constants
    brightest = x.amax((1, 2, 3), keepdim=True)
    hazy = x + thickness * landscape(x, noise.fork("fog"), decay)[:, None]
    return hazy * brightest / (brightest + thickness)


def brightness(x: Tensor, constants: Constants, noise: NoiseStream) -> Tensor:
    """Adds to the value of each pixel (its largest channel) at the same hue and saturation."""
    (added,) = constants
    value = x.amax(1, keepdim=True)
    brighter = (value + added).clamp(0, 1)
    return torch.where(value > 0, x * (brighter / value.clamp_min(1e-12)), brighter)


def grey(x: Tensor) -> Tensor:
    """(B, 1, H, W): the luminance of colours, the mean of other channels."""
    weights = _LUMA if x.shape[1] == 3 else (1 / x.shape[1],) * x.shape[1]
    return (x * torch.tensor(weights, dtype=x.dtype, device=x.device)[:, None, None]).sum(1, keepdim=True)


def landscape(x: Tensor, noise: NoiseStream, decay: float) -> Tensor:
    """(B, H, W) in [0, 1]: the upper left part of a fractal on the smallest power of two that holds the image."""
    height, width = x.shape[-2:]
    levels = max(1, (max(height, width) - 1).bit_length())
    drawn = [2 * noise.uniform((3, 2**i, 2**i), step=i, dtype=x.dtype) - 1 for i in range(levels)]
    return plasma(drawn, decay)[:, :height, :width]
