"""CIFAR-10-C: CIFAR-10's test images under 15 corruptions at 5 severities, in the format of its archive."""

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from datamodules.base import ImageDataModule, Split
from datamodules.sources import ImageSource
from datamodules.subsets import check_within
from lustral.corruptions import SEVERITIES, TYPES
from lustral.corruptions.severities import check_severities, check_types

FOLDER = "CIFAR-10-C"
LABELS = "labels.npy"
SITE = "https://zenodo.org/records/2535967"


class CIFAR10C(ImageDataModule):
    """CIFAR-10-C (Hendrycks & Dietterich 2019), for tests only: it has no training images.

    A file holds one type of corruption: the test images of CIFAR-10 five times, once a severity, from 1 to 5. All
    files are read page by page as images are needed.

    ``index`` counts the images of all 15 files, whatever types are chosen: (number of the type in `TYPES`) x (images a
    file) + row in the file. The test goes image by image, each under every chosen type and severity, so that a part of
    the images has all of them.

    Args:
        root: folder that holds ``CIFAR-10-C``, with ``labels.npy`` and a file for each type, such as ``fog.npy``.
        types: names of corruptions; None: all 15.
        severities: from 1 to 5; None: all of them.
        batch_size: images per batch and process, >= 1.
        num_workers: worker processes that load images, >= 0; 0 loads them in the main process.
        num_test: test only so many images *of each type and severity*, the first; None: all of them.
        test_subset: an index file with positions in CIFAR-10's test split, such as ``configs/subsets/cifar10_512.txt``;
            None: all of it.
        seed: of the loaders, >= 0; nothing is random.

    Raises:
        ValueError: if a type or severity does not exist, or as for :class:`ImageDataModule`.
        FileNotFoundError: as for :class:`ImageDataModule`.
    """

    name = "cifar10c"
    channels = 3
    image_size = 32

    def __init__(
        self,
        root: str = "data",
        types: Sequence[str] | None = None,
        severities: Sequence[int] | None = None,
        batch_size: int = 64,
        num_workers: int = 0,
        num_test: int | None = None,
        test_subset: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, num_workers, 1, num_test, test_subset, "test", seed)
        self.root = root
        self.types = list(check_types(types, "data.types"))
        self.severities = list(check_severities(severities, "data.severities"))

    @property
    def class_names(self) -> tuple[str, ...]:
        return ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

    @property
    def folder(self) -> Path:
        """Where the files are."""
        return Path(self.root).expanduser() / FOLDER

    def check(self, split: Split = "test") -> None:
        if split == "train":
            raise FileNotFoundError(
                "CIFAR-10-C is for tests and has no training images: train on datamodules.CIFAR10 "
                "(configs/data/cifar10.yaml), and evaluate with `python cli.py test`."
            )
        names = [LABELS, *(f"{name}.npy" for name in self.types)]
        missing = [name for name in names if not (self.folder / name).is_file()]
        if missing:
            raise FileNotFoundError(
                f"CIFAR-10-C is missing: {', '.join(missing)} not found in {self.folder.absolute()}. Unpack "
                f"CIFAR-10-C.tar from {SITE}, and give --data.root the folder that holds {FOLDER}."
            )

    def load_train(self) -> ImageSource:
        raise ValueError("CIFAR-10-C has no training split: train on CIFAR-10 (datamodules.CIFAR10).")

    def load_test(self) -> ImageSource:
        labels = read_labels(self.folder / LABELS)
        files = {name: read_images(self.folder / f"{name}.npy", len(labels)) for name in self.types}
        return CorruptedSource(files, labels)

    @cached_property
    def num_images(self) -> int:
        """Images of one type and severity: 10,000."""
        return len(self.test_source) // len(TYPES) // len(SEVERITIES)

    def corruption_of(self, indices: Sequence[int]) -> list[tuple[str, int, int]]:
        """For each index its type, its severity, and the position of the image in CIFAR-10's test split."""
        found = []
        for index in indices:
            number, row = divmod(index, self.num_images * len(SEVERITIES))
            severity, position = divmod(row, self.num_images)
            found.append((TYPES[number], SEVERITIES[severity], position))
        return found

    def test_part(self) -> list[int]:
        return self._indices(range(self.num_images))

    @property
    def test_set_indices(self) -> list[int]:
        return self._indices(self._positions)

    @property
    def test_indices(self) -> list[int]:
        self._check_num_test(len(self._positions))
        return self._indices(self._positions[: self.num_test])

    @property
    def _positions(self) -> list[int]:
        """The chosen images' positions in CIFAR-10's test split."""
        part = list(range(self.num_images))
        if self._subset is None:
            return part
        check_within(self._subset, part, str(self.test_subset), f"test part of {self.name}")
        return list(self._subset)

    def _indices(self, positions: Sequence[int]) -> list[int]:
        """Image by image, each under every chosen type and severity."""
        size = self.num_images
        cells = [(TYPES.index(name) * len(SEVERITIES) + s - 1) * size for name in self.types for s in self.severities]
        return [cell + position for position in positions for cell in cells]


class CorruptedSource(ImageSource):
    """The images of all types, those of types without a file left out.

    Args:
        files: (N, 32, 32, 3) uint8 by type, from severity 1 to 5.
        labels: (N,) of each file.
    """

    def __init__(self, files: dict[str, np.ndarray], labels: np.ndarray) -> None:
        self.files, self.size = files, len(labels)
        self.labels = np.tile(labels, len(TYPES))

    def image(self, position: int) -> Tensor:
        number, row = divmod(position, self.size)
        pixels = np.array(self.files[TYPES[number]][row])  # a copy: the file is opened to be read only
        return torch.from_numpy(pixels).permute(2, 0, 1).to(torch.float32).div(255).contiguous()

    def augmented(self, position: int, rng: np.random.Generator) -> Tensor:
        raise ValueError("CIFAR-10-C is for tests, and its images are not augmented: train on CIFAR-10.")

    def digest(self) -> str:
        content = hashlib.sha256(self.labels[: self.size].tobytes())
        for name, images in self.files.items():
            content.update(f"{name} {images.shape} {images.dtype}".encode())
            for first in range(0, len(images), 4096):
                content.update(np.ascontiguousarray(images[first : first + 4096]).data)
        return content.hexdigest()


def read_labels(path: Path) -> np.ndarray:
    """(N,) int64 in 0..9, those of the test images once for each severity.

    Raises:
        ValueError: if the file holds anything else, or is damaged.
    """
    labels = _read(path)
    size = len(labels) // len(SEVERITIES) if labels.ndim == 1 else 0
    fits = size > 0 and labels.dtype.kind in "iu" and len(labels) == size * len(SEVERITIES)
    if not fits or not (0 <= int(labels.min()) <= int(labels.max()) <= 9):
        raise _other(path, labels, "the labels 0..9 of the test images once for each of 5 severities")
    if not (labels.reshape(len(SEVERITIES), size) == labels[:size]).all():
        raise _other(path, labels, "the same labels in the same order for each of 5 severities")
    return np.asarray(labels, dtype=np.int64)


def read_images(path: Path, size: int) -> np.ndarray:
    """(size, 32, 32, 3) uint8, mapped into memory.

    Raises:
        ValueError: if the file holds anything else, or is damaged.
    """
    images = _read(path)
    if images.dtype != np.uint8 or images.shape != (size, 32, 32, 3):
        raise _other(path, images, f"{size} x 32 x 32 x 3 bytes, as {LABELS} has {size} labels")
    return images


def _read(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(
            f"{path} cannot be read as a file of CIFAR-10-C ({str(error).rstrip('.')}). {_REMEDY}"
        ) from error


def _other(path: Path, found: np.ndarray, wanted: str) -> ValueError:
    return ValueError(
        f"{path} is not a file of CIFAR-10-C: it should hold {wanted}, and holds {found.dtype} {found.shape}. {_REMEDY}"
    )


_REMEDY = f"Check that --data.root is right; if the file is a damaged copy, unpack CIFAR-10-C.tar from {SITE} again."
