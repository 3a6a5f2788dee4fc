"""Tiny data sets, written in the very formats that the sites give out."""

import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

from datamodules.cifar import FOLDER, TEST_FILES, TRAIN_FILES
from datamodules.cifar10c import FOLDER as CORRUPTED
from lustral.corruptions import TYPES


def write_cifar10(root: Path, n: int = 20, num_test: int | None = None) -> Path:
    """Write CIFAR-10's Python batches below ``root``: ``n`` images in each of the five training batches.

    The test batch has ``num_test`` images, or ``n`` (10,000 for a recipe with the shared 512). Label i % 10.
    Returns ``root``, which is what ``--data.root`` takes.
    """
    folder = root / FOLDER
    folder.mkdir(parents=True)
    for number, name in enumerate(TRAIN_FILES + TEST_FILES):
        size = num_test if num_test is not None and name in TEST_FILES else n
        batch = {
            "batch_label": name,
            "labels": [i % 10 for i in range(size)],
            "data": np.random.default_rng(number).integers(0, 256, (size, 3072), dtype=np.uint8),
            "filenames": [f"image_{i}.png" for i in range(size)],
        }
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    meta = {"label_names": ["airplane", "automobile"], "num_vis": 3072}
    (folder / "batches.meta").write_bytes(pickle.dumps(meta, protocol=2))
    return root


def write_cifar10c(root: Path, n: int = 4, types: Sequence[str] = TYPES) -> Path:
    """Write CIFAR-10-C's files below ``root``, ``n`` images of each type and severity; label i % 10 of image i.

    Returns ``root``, which is what ``--data.root`` takes.
    """
    folder = root / CORRUPTED
    folder.mkdir(parents=True)
    for name in types:
        images = np.random.default_rng(TYPES.index(name)).integers(0, 256, (5 * n, 32, 32, 3), dtype=np.uint8)
        np.save(folder / f"{name}.npy", images)
    np.save(folder / "labels.npy", np.tile(np.arange(n, dtype=np.uint8) % 10, 5))
    return root


def write_svhn(root: Path, n: int = 20) -> Path:
    """Write SVHN's three ``.mat`` files into ``root``, ``n`` images each; labels 1..10, 10 for a zero.

    Returns ``root``, which is what ``--data.root`` takes.
    """
    root.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(("train", "test", "extra")):
        images = np.random.default_rng(number).integers(0, 256, (32, 32, 3, n), dtype=np.uint8)
        labels = np.array([[i % 10 + 1] for i in range(n)], dtype=np.uint8)
        savemat(root / f"{name}_32x32.mat", {"X": images, "y": labels}, do_compression=True)
    return root


def write_imagenet(
    root: Path, synsets: Sequence[str], n: int = 2, layout: str = "folders", size: tuple[int, int] = (40, 32)
) -> Path:
    """Write ``n`` JPEG images (``size`` is width, height) a synset and split; one of them is grey.

    ``layout`` is "folders" (``train``, ``val``) or "archive" (``train.X1`` .. ``train.X4``, ``val.X``).
    Returns ``root``, which is what ``--data.root`` takes.
    """
    for number, synset in enumerate(synsets):
        train, val = ("train", "val") if layout == "folders" else (f"train.X{number % 4 + 1}", "val.X")
        for split in (train, val):
            folder = root / split / synset
            folder.mkdir(parents=True)
            for i in range(n):
                rng = np.random.default_rng([number, i, split == train])
                image = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
                name = f"{synset}_{i}.JPEG" if split == train else f"ILSVRC2012_val_{number:04d}{i:04d}.JPEG"
                (image.convert("L") if i == 0 else image).save(folder / name, quality=90)
    return root


def write_image_folder(root: Path, classes: Sequence[str], n: int = 2, size: int = 32) -> Path:
    """Write ``n`` square PNG images a class into ``root/train/<class>`` and ``root/test/<class>``; returns ``root``."""
    for number, name in enumerate(classes):
        for split in ("train", "test"):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(n):
                rng = np.random.default_rng([number, i, split == "train"])
                Image.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return root
