"""Image sources: the images of one full split by position, augmented or not."""

import hashlib
from abc import ABC, abstractmethod

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.keyed import keyed_generator
from datamodules.transforms import random_crop, random_flip


class ImageSource(ABC):
    """The images and labels of one full split.

    Attributes:
        labels: (N,) int64, by position.
    """

    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def image(self, position: int) -> Tensor:
        """The image as used in tests: float32 (C, H, W) in [0, 1]."""

    @abstractmethod
    def augmented(self, position: int, rng: np.random.Generator) -> Tensor:
        """The image as used in training: like :meth:`image`, augmented with random numbers from ``rng``."""

    @abstractmethod
    def digest(self) -> str:
        """Hexadecimal SHA-256 of the stored images and labels, which identifies the data wherever they are stored."""


class ArraySource(ImageSource):
    """A split that fits into memory.

    Args:
        images: (N, C, H, W), uint8 in 0..255 or float32 in [0, 1].
        labels: (N,) integers.
        crop_padding: augmentation shifts an image by up to this many pixels, filling with zeros (and flips
            it).
        stored: the array that :meth:`digest` hashes, if ``images`` were computed from it; None hashes ``images``.
    """

    def __init__(
        self, images: np.ndarray, labels: np.ndarray, crop_padding: int = 0, stored: np.ndarray | None = None
    ) -> None:
        self.images = torch.from_numpy(np.ascontiguousarray(images))
        self.labels = np.asarray(labels, dtype=np.int64)
        self.crop_padding = crop_padding
        self.stored = images if stored is None else stored

    def image(self, position: int) -> Tensor:
        image = self.images[position]
        return image.to(torch.float32).div(255) if image.dtype == torch.uint8 else image

    def augmented(self, position: int, rng: np.random.Generator) -> Tensor:
        return random_flip(random_crop(self.image(position), self.crop_padding, rng), rng)

    def digest(self) -> str:
        content = hashlib.sha256(f"{self.stored.shape} {self.stored.dtype}".encode())
        content.update(np.ascontiguousarray(self.stored).data)
        content.update(self.labels.data)
        return content.hexdigest()


class Samples(Dataset[tuple[Tensor, int, int]]):
    """Some positions of a source as (image float32 (C, H, W) in [0, 1], label, position).

    Args:
        source: the full split.
        positions: which of its images, in order.
        augment_seed: augment with random numbers keyed by (this seed, epoch, position); None: no augmentation.
    """

    def __init__(self, source: ImageSource, positions: list[int], augment_seed: int | None = None) -> None:
        self.source = source
        self.positions = np.asarray(positions, dtype=np.int64)
        self.augment_seed = augment_seed

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[Tensor, int, int]:
        """Sample number ``key``, or that of an (epoch, number) pair; a bare number means epoch 0."""
        epoch, number = key if isinstance(key, tuple) else (0, key)
        position = int(self.positions[number])
        if self.augment_seed is None:
            image = self.source.image(position)
        else:
            rng = keyed_generator("augmentation", self.augment_seed, epoch, position)
            image = self.source.augmented(position, rng)
        return image, int(self.source.labels[position]), position


class GroupedSamples(Dataset[tuple[Tensor, int, int, int]]):
    """Samples as (image, label, position, replicate), for a sampler that gives pairs (replicate, number); which images
    are judged together depends on the replicate."""

    def __init__(self, samples: Samples) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int, int, int]:
        replicate, number = key
        return (*self.samples[number], replicate)
