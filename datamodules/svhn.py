"""SVHN, the street view house numbers, in the cropped format (``*_32x32.mat``)."""

from pathlib import Path

import numpy as np
from scipy.io import loadmat
from torchvision import datasets

from datamodules.base import ImageDataModule, Split, TestOn
from datamodules.download import downloading
from datamodules.sources import ArraySource

SITE = "http://ufldl.stanford.edu/housenumbers"


class SVHN(ImageDataModule):
    """SVHN: colour images of 32 x 32 pixels, the digits 0 to 9; 73,257 to train, 26,032 to test.

    The files have label 10 for the digit zero; here its label is 0. There is no augmentation: a mirrored digit is
    another digit or none, and the published classifiers were trained without.

    Args:
        root: folder that holds (or, with ``download``, will hold) ``train_32x32.mat`` and ``test_32x32.mat``.
        download: download the data into ``root`` if they are missing, and verify them.
        extra: train on the 531,131 easier images of ``extra_32x32.mat`` too, whose positions follow those of
            the training split.
        batch_size: images per batch and process, >= 1.
        num_workers: worker processes that load images, >= 0; 0 loads them in the main process.
        num_val: images taken away from the training split for validation, >= 1.
        num_test: test only this many images, the first of the test set; None: all of them.
        test_subset: an index file with positions in the test split; None: all of it.
        test_on: "test" or "validation", the part that is tested.
        seed: of the shuffling, >= 0.

    Raises:
        ValueError, FileNotFoundError: as for :class:`ImageDataModule`.
    """

    name = "svhn"
    channels = 3
    image_size = 32

    def __init__(
        self,
        root: str = "data",
        download: bool = False,
        extra: bool = False,
        batch_size: int = 64,
        num_workers: int = 0,
        num_val: int = 1000,
        num_test: int | None = None,
        test_subset: str | None = None,
        test_on: TestOn = "test",
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, num_workers, num_val, num_test, test_subset, test_on, seed)
        self.root = root
        self.download = download
        self.extra = extra

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple("0123456789")

    def prepare_data(self) -> None:
        """Download the data if ``download`` is set, then check that they exist."""
        if self.download:
            with downloading("SVHN", SITE, self.root):
                for name in (*self._files("train"), *self._files("test")):
                    datasets.SVHN(self.root, name, download=True)
        super().prepare_data()

    def check(self, split: Split = "test") -> None:
        paths = [self._path(name) for name in self._files(split)]
        missing = [path.name for path in paths if not path.is_file()]
        if missing:
            raise FileNotFoundError(
                f"SVHN is missing: {', '.join(missing)} not found in {Path(self.root).expanduser().absolute()}. Give "
                f"--data.root their folder, or --data.download true, or fetch them from {SITE} (format 2, "
                "cropped digits)."
            )

    def load_train(self) -> ArraySource:
        return self._load("train")

    def load_test(self) -> ArraySource:
        return self._load("test")

    def _load(self, split: Split) -> ArraySource:
        images, labels = zip(*(read_mat(self._path(name)) for name in self._files(split)), strict=True)
        return ArraySource(np.concatenate(images), np.concatenate(labels))

    def _files(self, split: Split) -> tuple[str, ...]:
        """The site's names of the files that make up ``split``."""
        return ("train", "extra") if split == "train" and self.extra else (split,)

    def _path(self, name: str) -> Path:
        return Path(self.root).expanduser() / f"{name}_32x32.mat"


def read_mat(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 3, 32, 32) uint8 and labels (N,) int64 in 0..9 of one file.

    Raises:
        ValueError: if it is no file of SVHN, or is damaged.
    """
    remedy = (
        "Check that --data.root is right; if the file is a damaged copy, move it away and run again with "
        f"--data.download true, or fetch it from {SITE}."
    )
    try:
        content = loadmat(path, variable_names=["X", "y"])
        images, labels = content["X"], content["y"].reshape(-1).astype(np.int64)
    except Exception as error:  # damaged files raise errors of many types
        raise ValueError(f"{path} cannot be read as a file of SVHN ({error!r}). {remedy}") from error
    if images.dtype != np.uint8 or images.shape != (32, 32, 3, len(labels)) or not set(labels) <= set(range(1, 11)):
        raise ValueError(
            f"{path} is not a file of SVHN: it should hold 32 x 32 x 3 x N bytes and N labels 1..10, and "
            f"holds {images.dtype} {images.shape} and {len(labels)} labels. {remedy}"
        )
    return np.ascontiguousarray(images.transpose(3, 2, 0, 1)), labels % 10
