"""Attention masks: the pixels at which a classifier's activations are strong.

Pei et al., "Divide and conquer: heterogeneous noise integration for diffusion-based adversarial purification", CVPR
2025, equations 2 to 4, and its public code where it differs; docs/heterogeneous.md.
"""

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lustral.diffusion import to_diffusion
from lustral.noise import NoiseStream
from lustral.purifiers.masks import Activations, Mask

Normaliser = Literal["min_max", "softmax"]
InputRange = Literal["unit", "diffusion", "normalised"]

_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class AttentionMask(Mask):
    """The pixels whose attention reaches a threshold, in at least one of the victim's stages.

    The energy of a stage is sum_c abs(A_c) ** power, upsampled to the image and normalised to [0, 1]; the attention is
    the maximum over the stages. (Thresholding it is the paper's union of thresholded maps.)

    A mask of zeros and ones has no derivative: to the exact gradient it is a constant. An attack can look at it in
    other ways, through a `Variant` as its surrogate ("mask.rounding"):

    * ``rounding: straight_through``: zeros and ones, with the derivative of the relaxed mask.
    * ``rounding: false``: the relaxed mask, sigmoid((attention - threshold) / temperature), which is differentiated and
      used. The surrogate then differs from the defence.

    Args:
        stages: names of the victim's feature maps (B, C, H, W) that take part (`Classifier.stage_names`).
        tau: threshold on the attention, in (0, 1]; None if ``area`` is given.
        area: share of the pixels inside the mask, in (0, 1]: exactly floor(area * H * W) of each image, those of
            highest attention; of equal ones the first in reading order. None if ``tau`` is given.
        power: p of the energy, at least 1.
        root: whether the energy's p-th root is taken, as in equation 2; the code takes none. With min_max the root
            makes the mask larger at the same tau.
        normaliser: of the upsampled energy, image by image: "min_max" (the code), or "softmax", the paper's spatial
            softmax divided by its maximum. (A true softmax over a thousand pixels never reaches a threshold like 0.8.)
            A constant map is 0 everywhere with min_max, and 1 everywhere with softmax.
        rounding: whether the mask is rounded to 0 and 1; or "straight_through".
        temperature: of the relaxed mask, in units of the attention, positive.
        input_range: of the images that the victim is shown: "unit", [0, 1], as it was trained; for comparison with the
            code "diffusion", [-1, 1] (ImageNet), or "normalised", [-1, 1] normalised by ImageNet's mean and standard
            deviation (CIFAR-10; colour images only).

    Raises:
        ValueError: if an option is out of its range, or not exactly one of tau and area is given; in `check`, if the
            victim lacks a stage or has other channels than ``input_range`` needs; on a call, if a map is not (B, C, H,
            W) or ``area`` is less than a pixel.
    """

    looks = True

    def __init__(
        self,
        stages: Sequence[str],
        tau: None | float = 0.8,
        area: None | float = None,
        power: float = 2.0,
        root: bool = False,
        normaliser: Normaliser = "min_max",
        rounding: bool | Literal["straight_through"] = True,
        temperature: float = 0.1,
        input_range: InputRange = "unit",
    ) -> None:
        if isinstance(stages, str) or not stages:
            raise ValueError(f"stages is {stages!r}; list the names of at least one of the classifier's stages.")
        if (tau is None) == (area is None):
            raise ValueError(f"tau is {tau} and area is {area}: give exactly one of them, and null for the other.")
        for name, share in (("tau", tau), ("area", area)):
            if share is not None and not 0 < share <= 1:
                raise ValueError(f"{name} is {share}; it lies in (0, 1].")
        if not power >= 1 or not temperature > 0:
            raise ValueError(f"power = {power} must be at least 1, and temperature = {temperature} positive.")
        for name, value, allowed in (
            ("normaliser", normaliser, get_args(Normaliser)),
            ("rounding", rounding, (True, False, "straight_through")),
            ("input_range", input_range, get_args(InputRange)),
        ):
            if value not in allowed:
                raise ValueError(f"{name} is {value!r}; it may be {', '.join(map(str, allowed))}.")
        self.stages, self.tau, self.area = list(stages), tau, area
        self.power, self.root, self.normaliser = power, root, normaliser
        self.rounding, self.temperature = rounding, temperature
        self.input_range: InputRange = input_range

    def check(self, classifier: nn.Module) -> None:
        known = getattr(classifier, "stage_names", ())
        if unknown := [name for name in self.stages if name not in known]:
            raise ValueError(
                f"The mask looks at the stage {unknown[0]!r}, which {type(classifier).__name__} does not have: choose "
                f"stages among {', '.join(known) or 'those of another classifier'}."
            )
        channels = getattr(classifier, "image_shape", (3,))[0]
        if self.input_range == "normalised" and channels != len(_IMAGENET_MEAN):
            raise ValueError(
                f"input_range is normalised, for colour images, but the classifier's have {channels} channel(s): "
                "choose unit or diffusion."
            )

    def attention(self, x: Tensor, size: tuple[int, int], activations: Activations) -> Tensor:
        maps = activations(_shown(x, self.input_range), self.stages)
        found = []
        for name, features in maps.items():
            if features.ndim != 4:
                raise ValueError(f"The stage {name!r} is {tuple(features.shape)}, and no map (B, C, H, W) of pixels.")
            strength = energy(features, self.power, self.root)
            strength = F.interpolate(strength, size, mode="bilinear", align_corners=False)
            found.append(min_max(strength) if self.normaliser == "min_max" else relative_softmax(strength))
        return torch.stack(found).amax(0)

    def __call__(self, x: Tensor, size: tuple[int, int], activations: Activations, noise: NoiseStream) -> Tensor:
        with torch.set_grad_enabled(self.rounding is not True and torch.is_grad_enabled()):
            attention = self.attention(x, size, activations)
            if self.tau is not None:
                hard, threshold = attention >= self.tau, attention.new_tensor(self.tau)
            else:
                assert self.area is not None
                hard, threshold = _strongest(attention, self.area)
            if self.rounding is True:
                return hard.to(x.dtype)
            relaxed = torch.sigmoid((attention - threshold) / self.temperature)
            # The value is exactly hard + 0, the derivative is that of relaxed.
            return relaxed if self.rounding is False else hard.to(x.dtype) + (relaxed - relaxed.detach())


def energy(features: Tensor, power: float, root: bool) -> Tensor:
    """(B, 1, H, W): sum over channels of abs(A) ** power, and its root of that order (equation 2). The root's
    derivative, infinite at 0, is 0 there."""
    total = features.abs().pow(power).sum(1, keepdim=True)
    if not root:
        return total
    positive = total > 0
    return torch.where(positive, torch.where(positive, total, 1.0).pow(1.0 / power), 0.0)


def min_max(strength: Tensor) -> Tensor:
    """``strength`` (B, 1, H, W) scaled to [0, 1] image by image; 0 where an image's is constant."""
    low, high = strength.amin((2, 3), keepdim=True), strength.amax((2, 3), keepdim=True)
    width = high - low
    return (strength - low) / torch.where(width > 0, width, 1.0)


def relative_softmax(strength: Tensor) -> Tensor:
    """The softmax of ``strength`` (B, 1, H, W) over the pixels of an image, divided by its maximum."""
    return (strength - strength.amax((2, 3), keepdim=True)).exp()


def _strongest(attention: Tensor, area: float) -> tuple[Tensor, Tensor]:
    """The floor(area * H * W) strongest pixels of each image, bool (B, 1, H, W), and (B, 1, 1, 1) the value half-way
    between the weakest of them and the strongest of the others."""
    flat = attention.flatten(1)
    pixels = flat.shape[1]
    count = math.floor(area * pixels + 1e-9)  # 0.29 of 100 pixels are 29
    if not count:
        raise ValueError(f"area is {area}, which is less than one of {pixels} pixels: raise it.")
    ordered, places = flat.sort(dim=1, descending=True, stable=True)
    hard = torch.zeros_like(flat, dtype=torch.bool).scatter(1, places[:, :count], True)
    threshold = (ordered[:, count - 1] + ordered[:, min(count, pixels - 1)]) / 2
    return hard.view_as(attention), threshold[:, None, None, None]


def _shown(x: Tensor, input_range: InputRange) -> Tensor:
    if input_range == "unit":
        return x
    if input_range == "diffusion":
        return to_diffusion(x)
    mean, std = (x.new_tensor(values)[:, None, None] for values in (_IMAGENET_MEAN, _IMAGENET_STD))
    return (to_diffusion(x) - mean) / std
