"""The user's own images in one folder per class, as torchvision's ImageFolder reads them."""

import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

from datamodules.base import ImageDataModule, Split, TestOn
from datamodules.imagefiles import FileSource


class ImageFolder(ImageDataModule):
    """Colour images in ``root/<split>/<class>/*`` (JPEG or PNG), one folder per class and split.

    A label is the place of the class among the sorted folder names of the test split, which is torchvision's order:
    that of a classifier trained with its ImageFolder. ``index`` is the position in the split, sorted by class and file
    name. Grey images become colour ones.

    A test image is resized (bilinear, antialiased) so that its shorter side is ``resize``, and its central
    ``image_size`` square is cropped; images of that size are not changed. In training, a random crop is resized to that
    square, and half of the images are mirrored.

    Args:
        root: folder that holds the splits.
        image_size: side of an image in pixels, >= 1.
        resize: the shorter side before the crop, >= image_size; None: ``image_size``.
        train_folder: name of the training split's folder; an evaluation on test images does not need it.
        test_folder: name of the test split's folder.
        batch_size: images per batch and process, >= 1.
        num_workers: worker processes that load images, >= 0; 0 loads them in the main process.
        augment: random crops and mirror images in training; without, training images are treated as test images.
        num_val: images taken away from the training split for validation, >= 1.
        num_test: test only this many images, the first of the test set; None: all of them. The split is sorted
            by class, so the first N of all images are few classes: choose a ``test_subset``.
        test_subset: an index file with positions in the test split; None: all of it.
        test_on: "test" or "validation", the part that is tested.
        seed: of the shuffling and the augmentation, >= 0.

    Raises:
        ValueError, FileNotFoundError: as for :class:`ImageDataModule`.
    """

    channels = 3
    name = "image_folder"

    def __init__(
        self,
        root: str = "data/mine",
        image_size: int = 32,
        resize: int | None = None,
        train_folder: str = "train",
        test_folder: str = "test",
        batch_size: int = 64,
        num_workers: int = 0,
        augment: bool = True,
        num_val: int = 1000,
        num_test: int | None = None,
        test_subset: str | None = None,
        test_on: TestOn = "test",
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, num_workers, num_val, num_test, test_subset, test_on, seed)
        self._resize = image_size if resize is None else resize
        if image_size < 1 or self._resize < image_size:
            raise ValueError(
                f"data.image_size is {image_size} and data.resize {resize}: give 1 <= image_size <= resize."
            )
        self.root = root
        self.image_size = image_size
        self.resize = resize
        self.train_folder = train_folder
        self.test_folder = test_folder
        self.augment = augment

    @cached_property
    def class_names(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(self._folders(self.test_folder, "test_folder"))

    def check(self, split: Split = "test") -> None:
        self._class_folders(split)

    def load_train(self) -> FileSource:
        return FileSource(self._class_folders("train"), self._resize, self.image_size)

    def load_test(self) -> FileSource:
        return FileSource(self._class_folders("test"), self._resize, self.image_size)

    def pixel_options(self) -> Mapping[str, object]:
        return {"resize": self._resize, "interpolation": "bilinear, antialiased", "crop": "center"}

    def _class_folders(self, split: Split) -> dict[str, list[Path]]:
        """The folder of each class, in the order of the labels."""
        if split == "test":
            return {name: [Path(self.root) / self.test_folder / name] for name in self.class_names}
        found = self._folders(self.train_folder, "train_folder")
        strange = sorted(set(found) ^ set(self.class_names))
        if strange:
            raise ValueError(
                f"{Path(self.root).absolute()} has other classes in {self.train_folder} than in {self.test_folder} "
                f"({', '.join(strange[:5])}): give both a folder for each class."
            )
        return {name: [Path(self.root) / self.train_folder / name] for name in self.class_names}

    def _folders(self, split: str, option: str) -> list[str]:
        """The sorted names of a split's classes."""
        folder = Path(self.root) / split
        if not folder.is_dir():
            there = _names(Path(self.root))
            raise FileNotFoundError(
                f"There is no folder {folder.absolute()} (there are: {', '.join(there[:5]) or 'none'}): name the "
                f"folder of the splits with --data.root, and the split with --data.{option}."
            )
        names = _names(folder)
        if len(names) < 2:
            raise FileNotFoundError(
                f"{folder.absolute()} holds {len(names)} folder(s): sort the images into one folder a class."
            )
        return names


def _names(folder: Path) -> list[str]:
    """The sorted names of the folders in ``folder``, without hidden ones."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
