"""Masks over pixels: 1 where an image gets the strong noise. The controls here ask whether it matters where that is."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection

import torch
from torch import Tensor, nn

from lustral.noise import NoiseStream

Activations = Callable[[Tensor, Collection[str]], dict[str, Tensor]]
"""The victim's feature maps by name, of images in [0, 1] (see `lustral.networks.Classifier.activations`)."""


class Mask(ABC):
    """Chooses pixels of each image, row by row.

    Attributes:
        random: whether the mask depends on the noise.
        looks: whether it looks at the victim's activations; it then has an `attention`.
    """

    random: bool = False
    looks: bool = False

    def check(self, classifier: nn.Module) -> None:  # noqa: B027  (not every mask looks at it)
        """Refuse a victim that this mask cannot be made from.

        Raises:
            ValueError: if it lacks a stage that the mask looks at.
        """

    @abstractmethod
    def __call__(self, x: Tensor, size: tuple[int, int], activations: Activations, noise: NoiseStream) -> Tensor:
        """(B, 1, *size) in [0, 1], of the images' dtype: 1 inside the mask, for images ``x`` (B, C, H, W) in [0, 1].

        It is differentiable in ``x`` if it is not made of zeros and ones.
        """

    def attention(self, x: Tensor, size: tuple[int, int], activations: Activations) -> Tensor:
        """(B, 1, *size) in [0, 1]: what the mask is made from, differentiable in ``x``; only of masks that look."""
        raise AssertionError(f"{type(self).__name__} looks at nothing")


class ConstantMask(Mask):
    """A control: the same noise for every pixel.

    Args:
        inside: True gives all pixels the strong noise, False the weak one.
    """

    def __init__(self, inside: bool = True) -> None:
        self.inside = inside

    def __call__(self, x: Tensor, size: tuple[int, int], activations: Activations, noise: NoiseStream) -> Tensor:
        return x.new_full((len(x), 1, *size), float(self.inside))


class _Changed(Mask, ABC):
    """Another mask with its pixels changed."""

    def __init__(self, mask: Mask) -> None:
        self.mask = mask
        self.looks, self.random = mask.looks, mask.random

    def check(self, classifier: nn.Module) -> None:
        self.mask.check(classifier)

    def attention(self, x: Tensor, size: tuple[int, int], activations: Activations) -> Tensor:
        return self.mask.attention(x, size, activations)


class InvertedMask(_Changed):
    """A control: the strong noise outside of ``mask``.

    Args:
        mask: the mask that is inverted; its area becomes 1 minus its own.
    """

    def __init__(self, mask: Mask) -> None:
        super().__init__(mask)

    def __call__(self, x: Tensor, size: tuple[int, int], activations: Activations, noise: NoiseStream) -> Tensor:
        return 1.0 - self.mask(x, size, activations, noise)


class RandomMask(_Changed):
    """A control: as many pixels of each image as ``mask`` has, at places that do not depend on the image. They are
    drawn anew in every draw.

    Args:
        mask: the mask whose area is taken.
        keep_shape: move the whole mask by a random offset, over the edge and in again on the other side, instead of
            scattering its pixels. Scattered pixels have known neighbours, so they are easier to fill in.
    """

    def __init__(self, mask: Mask, keep_shape: bool = False) -> None:
        super().__init__(mask)
        self.keep_shape, self.random = keep_shape, True

    def __call__(self, x: Tensor, size: tuple[int, int], activations: Activations, noise: NoiseStream) -> Tensor:
        found = self.mask(x, size, activations, noise)
        places = _moved(size, noise.fork("mask")) if self.keep_shape else _scattered(size, noise.fork("mask"))
        return found.flatten(1).gather(1, places).view_as(found)


def _scattered(size: tuple[int, int], noise: NoiseStream) -> Tensor:
    """(B, H W) int64: the pixels in a random order."""
    return noise.uniform((size[0] * size[1],), dtype=torch.float64).argsort(dim=1, stable=True)


def _moved(size: tuple[int, int], noise: NoiseStream) -> Tensor:
    """(B, H W) int64: the pixels moved by a random number of rows and columns."""
    height, width = size
    by = noise.uniform((2,), dtype=torch.float64)
    rows, columns = (
        (torch.arange(n, device=by.device) + (by[:, k, None] * n).long()) % n for k, n in enumerate((height, width))
    )
    return (rows[:, :, None] * width + columns[:, None, :]).flatten(1)
