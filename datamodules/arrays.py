"""The user's own images and labels in ``.npz`` files."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from datamodules.base import ImageDataModule, Split, TestOn
from datamodules.sources import ArraySource

Layout = Literal["NCHW", "NHWC"]


class Arrays(ImageDataModule):
    """Images and labels in one ``.npz`` file per split, as ``numpy.savez(file, images=..., labels=...)`` writes them.

    ``images`` are uint8 in 0..255, or float32 in [0, 1]; (N, C, H, W) or (N, H, W, C) with C 1 or 3, or (N, H, W) of
    one channel; square. ``labels`` are (N,) integers from 0 on. ``index`` is the position in the file. In training,
    images are shifted by up to ``crop_padding`` pixels and mirrored, if ``augment`` is set.

    Args:
        test_file: the file of the test split.
        train_file: the file of the training split, which training and validation images are from; an evaluation on
            test images does not need it.
        layout: "NCHW" or "NHWC"; None: by which axis is 1 or 3 long.
        classes: the classes' names, in the order of the labels; None: as many numbers as the test labels show.
        batch_size: images per batch and process, >= 1.
        num_workers: worker processes that load images, >= 0; 0 loads them in the main process.
        augment: whether training images are augmented.
        crop_padding: in pixels, >= 0.
        num_val: images taken away from the training split for validation, >= 1.
        num_test: test only this many images, the first of the test set; None: all of them.
        test_subset: an index file with positions in the test split; None: all of it.
        test_on: "test" or "validation", the part that is tested.
        seed: of the shuffling and the augmentation, >= 0.

    Raises:
        ValueError, FileNotFoundError: as for :class:`ImageDataModule`; or if a file does not hold such arrays.
    """

    name = "arrays"

    def __init__(
        self,
        test_file: str = "data/test.npz",
        train_file: str | None = None,
        layout: Layout | None = None,
        classes: Sequence[str] | None = None,
        batch_size: int = 64,
        num_workers: int = 0,
        augment: bool = False,
        crop_padding: int = 4,
        num_val: int = 1000,
        num_test: int | None = None,
        test_subset: str | None = None,
        test_on: TestOn = "test",
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, num_workers, num_val, num_test, test_subset, test_on, seed)
        if layout is not None and layout not in get_args(Layout):
            raise ValueError(f"data.layout is {layout!r}; it may be {' or '.join(get_args(Layout))}, or null.")
        if crop_padding < 0:
            raise ValueError(f"data.crop_padding is {crop_padding}; it cannot be negative.")
        self.test_file, self.train_file, self.classes = test_file, train_file, classes
        self.layout: Layout | None = layout
        self.augment, self.crop_padding = augment, crop_padding

    @cached_property
    def class_names(self) -> tuple[str, ...]:  # type: ignore[override]
        if self.classes is not None:
            return tuple(self.classes)
        return tuple(str(label) for label in range(int(self._test[1].max()) + 1))

    @cached_property
    def channels(self) -> int:  # type: ignore[override]
        return self._test[0].shape[1]

    @cached_property
    def image_size(self) -> int:  # type: ignore[override]
        return self._test[0].shape[2]

    @cached_property
    def _test(self) -> tuple[np.ndarray, np.ndarray]:
        self.check("test")
        return read_arrays(Path(self.test_file).expanduser(), self.layout)

    def check(self, split: Split = "test") -> None:
        file = self.test_file if split == "test" else self.train_file
        if file is None:
            raise FileNotFoundError(
                "Arrays has no training split, which validation images are taken from too: name its file with "
                "--data.train_file."
            )
        if not Path(file).expanduser().is_file():
            raise FileNotFoundError(
                f"There is no file {Path(file).expanduser().absolute()}: name the file of the {split} split with "
                f"--data.{split}_file; numpy.savez(file, images=images, labels=labels) writes one."
            )

    def load_test(self) -> ArraySource:
        return self._source(*self._test, str(self.test_file))

    def load_train(self) -> ArraySource:
        images, labels = read_arrays(Path(str(self.train_file)).expanduser(), self.layout)
        if images.shape[1:] != self._test[0].shape[1:]:
            raise ValueError(
                f"{self.train_file} holds images {images.shape[1:]}, {self.test_file} {self._test[0].shape[1:]}: give "
                "two splits of one data set."
            )
        return self._source(images, labels, str(self.train_file))

    def _source(self, images: np.ndarray, labels: np.ndarray, file: str) -> ArraySource:
        if labels.max() >= self.num_classes:
            raise ValueError(
                f"{file} has a label {labels.max()}, but there are {self.num_classes} classes: name them all with "
                "--data.classes."
            )
        return ArraySource(images, labels, self.crop_padding)


def read_arrays(path: Path, layout: Layout | None) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, C, H, W), uint8 or float32 in [0, 1], and labels (N,) int64 of a file.

    Raises:
        ValueError: if the file does not hold such arrays, or it cannot be told which axis is that of the channels.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            images, labels = file["images"], file["labels"]
    except Exception as error:  # damaged files raise errors of many types
        raise ValueError(
            f"{path} is no .npz file with the arrays `images` and `labels` ({error}): write it with "
            "numpy.savez(file, images=images, labels=labels)."
        ) from error
    images = _channels_first(images, layout, path)
    if not np.issubdtype(labels.dtype, np.integer) or labels.shape != (len(images),) or not len(labels):
        raise ValueError(
            f"{path}: labels are {labels.dtype} {labels.shape} for {len(images)} images; give an integer each."
        )
    if labels.min() < 0:
        raise ValueError(f"{path}: a label is {labels.min()}; labels count from 0 on.")
    if images.dtype != np.uint8:
        if not np.issubdtype(images.dtype, np.floating):
            raise ValueError(f"{path}: images are {images.dtype}; give uint8, or floats in [0, 1].")
        images = images.astype(np.float32)
        if not (images.min() >= 0 and images.max() <= 1):  # NaN included
            raise ValueError(
                f"{path}: images lie in [{images.min():.4g}, {images.max():.4g}], not in [0, 1]: store grey levels as "
                "uint8, or divide them by 255; a normalisation belongs to the classifier."
            )
    return np.ascontiguousarray(images), labels.astype(np.int64)


def _channels_first(images: np.ndarray, layout: Layout | None, path: Path) -> np.ndarray:
    if images.ndim == 3:
        images, layout = images[:, None], "NCHW"
    found = [name for name, axis in (("NCHW", 1), ("NHWC", 3)) if images.ndim == 4 and images.shape[axis] in (1, 3)]
    if layout is None and len(found) > 1:
        raise ValueError(f"{path}: images are {images.shape}, which may be NCHW or NHWC: set --data.layout.")
    layout = layout or ("NHWC" if found == ["NHWC"] else "NCHW")
    if layout not in found:
        raise ValueError(
            f"{path}: images are {images.shape}; give (N, C, H, W) or (N, H, W, C) with 1 or 3 channels, or (N, H, W)."
        )
    images = images if layout == "NCHW" else images.transpose(0, 3, 1, 2)
    if images.shape[2] != images.shape[3]:
        raise ValueError(f"{path}: images are {images.shape[2]} x {images.shape[3]} pixels; give square ones.")
    return images
