"""Images of one's own, a folder a class."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules import ImageFolder
from tests.datamodules.fixtures import write_image_folder


def build(root: Path, **options: Any) -> ImageFolder:
    return ImageFolder(**{"root": str(root), "num_val": 2, "batch_size": 4, **options})


def test_images_of_the_size_are_taken_as_they_are(tmp_path: Path) -> None:
    module = build(write_image_folder(tmp_path, ["dog", "10", "cat"], n=2))
    batches = list(module.test_dataloader())
    image, label, index = (torch.cat(parts) for parts in zip(*batches, strict=True))
    assert module.class_names == ("10", "cat", "dog")  # as torchvision's ImageFolder sorts them
    assert (label.tolist(), index.tolist()) == ([0, 0, 1, 1, 2, 2], list(range(6)))
    stored = np.asarray(Image.open(tmp_path / "test" / "cat" / "1.png")).transpose(2, 0, 1)
    assert torch.equal(image[3], torch.from_numpy(stored.astype(np.float32)) / 255)
    assert len(module.train_source) == 6
    assert module.fingerprint()["dataset"] == "image_folder"


def test_the_splits_may_bear_other_names(tmp_path: Path) -> None:
    root = write_image_folder(tmp_path, ["a", "b"])
    (root / "test").rename(root / "val")
    with pytest.raises(FileNotFoundError, match=r"no folder .*test \(there are: train, val\).*--data\.test_folder\."):
        build(root).prepare_data()
    build(root, test_folder="val", image_size=16, resize=24).prepare_data()


def test_the_splits_have_the_same_classes(tmp_path: Path) -> None:
    root = write_image_folder(tmp_path, ["a", "b"])
    (root / "train" / "a").rename(root / "train" / "c")
    build(root).prepare_data()  # a test needs no training images
    with pytest.raises(ValueError, match=r"other classes in train than in test \(a, c\)"):
        build(root, test_on="validation").prepare_data()


def test_loose_images_are_no_classes(tmp_path: Path) -> None:
    (tmp_path / "test" / ".cache").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"holds 0 folder\(s\): sort the images into one folder a class"):
        build(tmp_path).prepare_data()
    with pytest.raises(ValueError, match=r"image_size is 32 and data\.resize 16"):
        build(tmp_path, resize=16)
