"""The 15 common corruptions of Hendrycks & Dietterich (ICLR 2019), for images of any data set. docs/corruptions.md."""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from lustral.corruptions import blurs, digital, noises, weather
from lustral.corruptions.severities import (
    CONSTANTS,
    Constants,
    check_severities,
    check_table,
    check_types,
    table_of,
)
from lustral.noise import NoiseStream

Corruption = Callable[[Tensor, Constants, NoiseStream], Tensor]
"""Takes images (B, C, H, W) in [0, 1] in float64, constants, and B rows of noise; its answer may leave [0, 1]."""

CORRUPTIONS: Mapping[str, Corruption] = {
    "gaussian_noise": noises.gaussian_noise,
    "shot_noise": noises.shot_noise,
    "impulse_noise": noises.impulse_noise,
    "defocus_blur": blurs.defocus_blur,
    "glass_blur": blurs.glass_blur,
    "motion_blur": blurs.motion_blur,
    "zoom_blur": blurs.zoom_blur,
    "snow": weather.snow,
    "frost": weather.frost,
    "fog": weather.fog,
    "brightness": weather.brightness,
    "contrast": digital.contrast,
    "elastic_transform": digital.elastic_transform,
    "pixelate": digital.pixelate,
    "jpeg_compression": digital.jpeg_compression,
}


class CommonCorruptions:
    """Corrupts images by type and severity, each with noise of its own.

    What becomes of an image depends on the image, the type, the severity and its row of noise, and on nothing else:
    everything is computed in float64 and rounded to 8 bits, as the published files are stored.

    Args:
        types: names of corruptions (`TYPES`); None: all 15.
        severities: from 1 to 5; None: all of them.
        table: the constants: "small", those of CIFAR-10-C; "large", those of ImageNet-C; "auto", small for images of up
            to 64 pixels.

    Raises:
        ValueError: if a type, a severity or the table does not exist.
    """

    def __init__(
        self,
        types: Sequence[str] | None = None,
        severities: Sequence[int] | None = None,
        table: Literal["auto", "small", "large"] = "auto",
    ) -> None:
        self.types = list(check_types(types, "corruptions.types"))
        self.severities = list(check_severities(severities, "corruptions.severities"))
        check_table(table)
        self.table: Literal["auto", "small", "large"] = table

    @property
    def cells(self) -> list[tuple[str, int]]:
        """(type, severity), type by type."""
        return [(name, severity) for name in self.types for severity in self.severities]

    def __call__(self, x: Tensor, name: str, severity: int, noise: NoiseStream) -> Tensor:
        """Images ``x`` (B, C, H, W) in [0, 1] with a corruption, float32 multiples of 1/255 in [0, 1].

        Args:
            x: the images.
            name: of a corruption.
            severity: from 1 to 5.
            noise: B rows; types and severities have streams of their own.
        """
        constants = CONSTANTS[table_of(self.table, *x.shape[-2:])][name][severity - 1]
        stream = noise.fork("corruption", name, f"severity {severity}")
        with torch.no_grad():
            return in_8_bits(CORRUPTIONS[name](x.double(), constants, stream))


def in_8_bits(x: Tensor) -> Tensor:
    """Clipped to [0, 1], and rounded to the nearest multiple of 1/255, float32. What lies in the middle, but for the
    last bits of float64, is rounded upwards wherever these happen to be."""
    return ((x.clamp(0, 1) * 255 + 0.5 + 1e-6).floor() / 255).float()
