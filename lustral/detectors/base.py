"""The two kinds of detector: of single images, and of groups. A higher statistic means a more suspicious input."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from lustral.detectors.reference import Reference
from lustral.noise import NoiseStream
from lustral.rows import Runtime


class _Referring(nn.Module, ABC):
    """What both kinds share.

    Attributes:
        runtime: how networks are called; set by an evaluation, so that an image's bits do not depend on its batch.
    """

    def __init__(self, reference: Reference | None) -> None:
        super().__init__()
        self.runtime = Runtime()
        self.reference = reference

    @property
    def needs_reference(self) -> bool:
        """Whether the statistic compares with reference images."""
        return True

    def refer(self, reference: Reference) -> None:
        """Compare with these images from now on. Called before the first statistic."""
        self.reference = reference

    def ready(self, device: torch.device | str) -> None:
        """Compute now, on ``device``, what is computed once: the reference's side of a statistic, and with it the
        bandwidths that a kernel leaves open."""

    def referred(self) -> Reference:
        """The reference.

        Raises:
            ValueError: if there is none yet.
        """
        if self.reference is None:
            raise ValueError(
                f"{type(self).__name__} compares with reference images and has none: give it a `reference` "
                "(lustral.detectors.StoredReference)."
            )
        return self.reference

    def _check(self, x: Tensor, noise: NoiseStream) -> None:
        if len(x) != len(noise):
            raise ValueError(f"A detector was given {len(x)} images and noise of {len(noise)} rows: give a row each.")
        if self.reference is not None and x.shape[1:] != self.reference.images.shape[1:]:
            raise ValueError(
                f"{type(self).__name__} was given images of shape {tuple(x.shape[1:])}, and its reference has images "
                f"of shape {tuple(self.reference.images.shape[1:])}: name a reference of the same data."
            )


class Detector(_Referring):
    """Scores images one by one; subclasses implement `statistic`. An image's score depends on nothing but the image,
    its noise and the stored reference."""

    @abstractmethod
    def statistic(self, x: Tensor, noise: NoiseStream) -> Tensor:
        """(B,) float64 scores of images ``x`` (B, C, H, W) in [0, 1]; ``noise`` has B rows."""

    def forward(self, x: Tensor, noise: NoiseStream) -> Tensor:
        """The `statistic`, verified. Final.

        Raises:
            ValueError: if images and noise differ in number, images and reference in shape, or the statistic is not one
                number an image.
        """
        self._check(x, noise)
        found = self.statistic(x, noise)
        if found.shape != (len(x),):
            raise ValueError(
                f"{type(self).__name__} gave statistics of shape {tuple(found.shape)} for {len(x)} images: a detector "
                "of single images gives one each; one of groups is a GroupDetector."
            )
        return found


class GroupDetector(_Referring):
    """Scores groups of images; subclasses implement `embed` and `of_group`. A group's score depends on nothing outside
    of it but the stored reference."""

    @abstractmethod
    def embed(self, x: Tensor, noise: NoiseStream) -> dict[str, Tensor]:
        """What is computed image by image, with B rows each, of images ``x`` (B, C, H, W) in [0, 1]."""

    @abstractmethod
    def of_group(self, embedded: dict[str, Tensor]) -> Tensor:
        """() float64 score of one group, from the rows of `embed`."""

    def statistic(self, x: Tensor, group_size: int, noise: NoiseStream) -> Tensor:
        """(groups,) float64 scores of images ``x`` (groups * group_size, C, H, W) in [0, 1], whole groups in contiguous
        blocks; ``noise`` has a row for each image. Final.

        Raises:
            ValueError: if the images are not whole groups or of another shape than the reference, or the noise has not
                as many rows.
        """
        self._check(x, noise)
        if group_size < 1 or len(x) % group_size or not len(x):
            raise ValueError(
                f"{len(x)} images are no whole groups of {group_size}: give a multiple, such as "
                f"{max(1, len(x) // max(1, group_size)) * max(1, group_size)}."
            )
        embedded = self.embed(x, noise)
        # One group at a time: the last bits of a product of matrices depend on how many are multiplied.
        parts = {name: rows.split(group_size) for name, rows in embedded.items()}
        blocks = [{name: part[g] for name, part in parts.items()} for g in range(len(x) // group_size)]
        return torch.stack([self.of_group(block) for block in blocks])
