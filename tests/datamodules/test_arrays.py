"""Images and labels of one's own in .npz files."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datamodules import Arrays
from datamodules.arrays import read_arrays

RNG = np.random.default_rng(0)
BYTES = RNG.integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
LABELS = np.array([0, 1, 2, 0, 1, 2])


def write(path: Path, images: np.ndarray = BYTES, labels: np.ndarray = LABELS) -> str:
    np.savez(path, images=images, labels=labels)
    return str(path)


def build(path: Path, **options: Any) -> Arrays:
    return Arrays(**{"test_file": write(path / "test.npz"), "num_val": 2, "batch_size": 4, **options})


def test_both_layouts_and_both_types_are_the_same_images(tmp_path: Path) -> None:
    expected = torch.from_numpy(BYTES.transpose(0, 3, 1, 2).astype(np.float32) / 255)
    floats = BYTES.transpose(0, 3, 1, 2).astype(np.float32) / 255
    for images in (BYTES, BYTES.transpose(0, 3, 1, 2), floats):
        module = Arrays(write(tmp_path / "a.npz", images), batch_size=6)
        image, label, index = next(iter(module.test_dataloader()))
        assert torch.equal(image, expected)
        assert (label.tolist(), index.tolist()) == (LABELS.tolist(), list(range(6)))
    assert (module.channels, module.image_size, module.num_classes) == (3, 8, 3)
    assert read_arrays(Path(write(tmp_path / "grey.npz", BYTES[..., 0])), None)[0].shape == (6, 1, 8, 8)


def test_training_and_validation_are_of_the_training_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"--data\.train_file"):
        build(tmp_path, test_on="validation").prepare_data()
    module = build(tmp_path, train_file=write(tmp_path / "train.npz"), augment=True, crop_padding=1)
    train, validation = module.train_parts
    assert sorted(train + validation) == list(range(6))
    other = write(tmp_path / "other.npz", RNG.integers(0, 256, (6, 9, 9, 3), dtype=np.uint8))
    with pytest.raises(ValueError, match="two splits of one data set"):
        build(tmp_path, train_file=other).setup("fit")


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (BYTES.astype(np.float32), LABELS, "divide them by 255"),
        (BYTES.astype(np.float32) * np.nan, LABELS, r"not in \[0, 1\]"),
        (BYTES.astype(np.int64), LABELS, "images are int64"),
        (BYTES[:, :6], LABELS, "square"),
        (BYTES[..., :2], LABELS, "1 or 3 channels"),
        (BYTES[:, :3, :3], LABELS, r"set --data\.layout"),
        (BYTES, LABELS[:5], "an integer each"),
        (BYTES, LABELS - 1, "count from 0"),
        (BYTES, LABELS.astype(np.float32), "an integer each"),
    ],
)
def test_other_arrays_are_refused(tmp_path: Path, images: np.ndarray, labels: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_arrays(Path(write(tmp_path / "bad.npz", images, labels)), None)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"numpy\.savez"):
        Arrays(str(tmp_path / "none.npz")).prepare_data()
    (tmp_path / "bad.npz").write_bytes(b"no zip")
    with pytest.raises(ValueError, match=r"no \.npz file"):
        _ = Arrays(str(tmp_path / "bad.npz")).channels
    np.savez(tmp_path / "objects.npz", images=np.array([None], dtype=object), labels=LABELS)
    with pytest.raises(ValueError, match=r"no \.npz file"):
        read_arrays(tmp_path / "objects.npz", None)
    with pytest.raises(ValueError, match="a label 2, but there are 2 classes"):
        build(tmp_path, classes=["a", "b"]).setup("test")
    with pytest.raises(ValueError, match=r"data\.layout"):
        build(tmp_path, layout="CHWN")
