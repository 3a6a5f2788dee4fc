"""The 1,797 handwritten digits that come with scikit-learn: no download, and minutes of training."""

from collections.abc import Mapping

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch.nn import functional as F

from datamodules.base import ImageDataModule, Split, TestOn
from datamodules.keyed import keyed_generator
from datamodules.sources import ArraySource
from datamodules.subsets import SHIPPED, read_indices


class Digits(ImageDataModule):
    """Scikit-learn's digits: grey images of 8 x 8 pixels, ten classes.

    The stored pixels are multiples of 1/16, so an input off that grid could be recognised as attacked by its grey
    levels alone. Each image therefore gets a fixed uniform dequantisation of +-1/32, keyed by its position and
    clipped to [0, 1]: image i is the same everywhere. Other sizes and channels are made from that image.

    The split is fixed: 1,157 images to train, 130 to validate, 510 to test, in this order (index files in
    ``configs/subsets/digits_*.txt``). The images are stored writer by writer, in blocks of about 130 that begin with
    0 1 2 ... 9 three times, and the parts are whole blocks, so no writer is in two of them. A random split would have
    the same writers in training and test, and be easier: the nearest training image has the right class for 99.2 % of
    its test images, and for 95.9 % here. Inside a part the order is that of `subsets.stratified_order`, so the first N
    images are balanced over classes. ``index`` is the position in all 1,797, for every part.

    Args:
        batch_size: images per batch and process, >= 1.
        num_workers: worker processes that load images, >= 0; the images are in memory, so 0 is fastest.
        image_size: side of an image in pixels, >= 1; other than 8 by bilinear interpolation (antialiased).
        channels: 1, or 3 equal ones.
        num_val: validate only on this many images, the first of the 130 validation images, 1..130.
        num_test: test only this many images, the first of the test set (balanced over classes); None: all.
        test_subset: an index file with positions out of the test part; None: all 510.
        test_on: "test" or "validation", the part that is tested.
        seed: of the shuffling, >= 0.

    Raises:
        ValueError, FileNotFoundError: as for :class:`ImageDataModule`; all of them at construction.
    """

    name = "digits"

    def __init__(
        self,
        batch_size: int = 64,
        num_workers: int = 0,
        image_size: int = 8,
        channels: int = 1,
        num_val: int = 130,
        num_test: int | None = None,
        test_subset: str | None = None,
        test_on: TestOn = "test",
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, num_workers, num_val, num_test, test_subset, test_on, seed)
        if image_size < 1:
            raise ValueError(f"data.image_size is {image_size}; it must be at least 1 pixel.")
        if channels not in (1, 3):
            raise ValueError(f"data.channels is {channels}; digits are grey: give 1, or 3 for equal channels.")
        self.image_size = image_size
        self.channels = channels
        self._test = read_indices(SHIPPED / "digits_test.txt")
        self._val = read_indices(SHIPPED / "digits_val.txt")
        self._train = read_indices(SHIPPED / "digits_train.txt")
        if num_val > len(self._val):
            raise ValueError(f"data.num_val is {num_val}, but digits have {len(self._val)} validation images.")
        _ = self.test_indices  # the split is known, so a bad subset is reported before the data are read

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple("0123456789")

    def check(self, split: Split = "test") -> None:
        """Nothing to check: the images come with scikit-learn."""

    def load_train(self) -> ArraySource:
        return self.load_test()

    def load_test(self) -> ArraySource:
        stored, labels = load_digits(return_X_y=True)
        stored = stored.reshape(-1, 8, 8).astype(np.uint8)  # integers 0..16
        images = torch.from_numpy(dequantise(stored))[:, None]
        if self.image_size != 8:
            size = (self.image_size, self.image_size)
            images = F.interpolate(images, size, mode="bilinear", antialias=True).clamp(0, 1)
        images = images.expand(-1, self.channels, -1, -1)
        return ArraySource(images.numpy(), labels, stored=stored)

    def test_part(self) -> list[int]:
        return list(self._test)

    def split_train(self) -> tuple[list[int], list[int]]:
        return sorted(self._train), self._val[: self.num_val]

    def pixel_options(self) -> Mapping[str, object]:
        return {
            "dequantisation": "uniform +-1/32, keyed by position",
            "interpolation": "bilinear, antialiased",
        }


def dequantise(stored: np.ndarray) -> np.ndarray:
    """Integers 0..16 (N, 8, 8) as float32 in [0, 1], with noise added to image i that is keyed by i.

    The noise is uniform on [-1/32, 1/32). It is computed from the raw bits of the Philox generator, the only output
    of NumPy's new generators that later versions are guaranteed not to change.
    """
    images = np.empty(stored.shape, dtype=np.float32)
    for position, image in enumerate(stored):
        raw = keyed_generator("digits dequantisation", 0, 0, position).bit_generator.random_raw(image.size)
        uniform = (raw >> np.uint64(11)) * 2.0**-53  # 53 bits, in [0, 1)
        images[position] = np.clip(image / 16 + (uniform.reshape(image.shape) - 0.5) / 16, 0, 1)
    return images
