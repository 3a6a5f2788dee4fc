"""CIFAR-10, in the Python format of its site (``cifar-10-batches-py``)."""

from pathlib import Path

import numpy as np
from torchvision import datasets

from datamodules.base import ImageDataModule, Split, TestOn
from datamodules.download import downloading
from datamodules.pickles import read_array_pickle
from datamodules.sources import ArraySource

FOLDER = "cifar-10-batches-py"
TRAIN_FILES = tuple(f"data_batch_{number}" for number in range(1, 6))
TEST_FILES = ("test_batch",)
SITE = "https://www.cs.toronto.edu/~kriz/cifar.html"


class CIFAR10(ImageDataModule):
    """CIFAR-10: colour images of 32 x 32 pixels, ten classes, 50,000 to train and 10,000 to test.

    Args:
        root: folder that holds (or, with ``download``, will hold) ``cifar-10-batches-py``.
        download: download the data into ``root`` if they are missing, and verify them.
        batch_size: images per batch and process, >= 1.
        num_workers: worker processes that load images, >= 0; 0 loads them in the main process.
        augment: random crops and mirror images in training.
        crop_padding: largest shift of a random crop in pixels, >= 0; 0 leaves only the mirroring, as in the
            training of diffusion models (which would learn a black border).
        num_val: images taken away from the training split for validation, >= 1.
        num_test: test only this many images, the first of the test set; None: all of them.
        test_subset: an index file such as ``configs/subsets/cifar10_512.txt``; None: all of the test split.
        test_on: "test" or "validation", the part that is tested.
        seed: of the shuffling and the augmentation, >= 0.

    Raises:
        ValueError, FileNotFoundError: as for :class:`ImageDataModule`.
    """

    name = "cifar10"
    channels = 3
    image_size = 32

    def __init__(
        self,
        root: str = "data",
        download: bool = False,
        batch_size: int = 64,
        num_workers: int = 0,
        augment: bool = True,
        crop_padding: int = 4,
        num_val: int = 1000,
        num_test: int | None = None,
        test_subset: str | None = None,
        test_on: TestOn = "test",
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, num_workers, num_val, num_test, test_subset, test_on, seed)
        if crop_padding < 0:
            raise ValueError(f"data.crop_padding is {crop_padding}; it must be at least 0 pixels.")
        self.root = root
        self.download = download
        self.augment = augment
        self.crop_padding = crop_padding

    @property
    def class_names(self) -> tuple[str, ...]:
        return ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

    def prepare_data(self) -> None:
        """Download the data if ``download`` is set, then check that they exist."""
        if self.download:
            with downloading("CIFAR-10", SITE, self.root):
                datasets.CIFAR10(self.root, download=True)  # unpickles only after the checksums were right
        super().prepare_data()

    def check(self, split: Split = "test") -> None:
        folder = Path(self.root).expanduser() / FOLDER
        names = TRAIN_FILES if split == "train" else TEST_FILES
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise FileNotFoundError(
                f"CIFAR-10 is missing: {', '.join(missing)} not found in {folder.absolute()}. Give "
                f"--data.root the folder that holds {FOLDER}, or --data.download true, or unpack the Python "
                f"version from {SITE} there."
            )

    def load_train(self) -> ArraySource:
        return self._load(TRAIN_FILES)

    def load_test(self) -> ArraySource:
        return self._load(TEST_FILES)

    def _load(self, names: tuple[str, ...]) -> ArraySource:
        images, labels = zip(*(read_batch(Path(self.root).expanduser() / FOLDER / name) for name in names), strict=True)
        return ArraySource(np.concatenate(images), np.concatenate(labels), self.crop_padding)


def read_batch(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 3, 32, 32) uint8 and labels (N,) int64 of one batch file.

    Raises:
        ValueError: if it is no batch file, is damaged, or holds anything but arrays.
    """
    remedy = (
        f"Check that --data.root is right; if the file is a damaged copy, move {path.parent} away and run again with "
        "--data.download true."
    )
    try:
        batch = read_array_pickle(path)
        images, labels = np.asarray(batch["data"]), np.asarray(batch["labels"])
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise ValueError(f"{path} is not a batch of CIFAR-10 ({str(error).rstrip('.')}). {remedy}") from error
    if images.dtype != np.uint8 or images.shape != (len(labels), 3072) or not _are_labels(labels):
        raise ValueError(
            f"{path} is not a batch of CIFAR-10: it should hold N x 3072 bytes and N labels 0..9, and holds "
            f"{images.dtype} {images.shape} and {labels.dtype} {labels.shape}. {remedy}"
        )
    return images.reshape(-1, 3, 32, 32), labels.astype(np.int64)


def _are_labels(labels: np.ndarray) -> bool:
    return labels.ndim == 1 and labels.dtype.kind == "i" and labels.size > 0 and 0 <= labels.min() <= labels.max() <= 9
