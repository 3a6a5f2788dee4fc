"""CIFAR-10-C, read from a small folder in its archive's layout."""

from pathlib import Path

import numpy as np
import pytest
import torch

from datamodules import CIFAR10C
from lustral.corruptions import TYPES
from tests.datamodules.fixtures import write_cifar10c

SOME = ["fog", "snow"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cifar10c(tmp_path_factory.mktemp("data"))


def test_images_are_those_of_the_files(root: Path) -> None:
    module = CIFAR10C(str(root), types=SOME, severities=[5, 2], batch_size=3, num_test=3)
    seen = []
    for image, label, index in module.test_dataloader():
        assert image.dtype == torch.float32
        assert label.dtype == index.dtype == torch.int64
        for row, (name, severity, position) in enumerate(module.corruption_of(index.tolist())):
            pixels = np.load(root / "CIFAR-10-C" / f"{name}.npy")[(severity - 1) * 4 + position]
            assert np.array_equal((image[row] * 255).round().byte().movedim(0, -1).numpy(), pixels)
            assert label[row] == position % 10
            seen.append((name, severity, position))
    cells = [("snow", 2), ("snow", 5), ("fog", 2), ("fog", 5)]
    assert seen == [(*cell, position) for position in range(3) for cell in cells]
    assert (module.num_classes, module.channels, module.image_size) == (10, 3, 32)


def test_all_types_and_severities_are_the_default(root: Path) -> None:
    module = CIFAR10C(str(root))
    assert len(module.test_indices) == 15 * 5 * 4
    assert sorted(module.test_indices) == list(range(300))
    assert {name for name, _, _ in module.corruption_of(module.test_indices)} == set(TYPES)


def test_an_index_does_not_depend_on_the_choice(root: Path, tmp_path: Path) -> None:
    every = CIFAR10C(str(root))
    some = CIFAR10C(str(root), types=SOME, severities=[3])
    assert set(some.test_indices) < set(every.test_indices)
    assert some.corruption_of(some.test_indices) == every.corruption_of(some.test_indices)
    subset = tmp_path / "subset.txt"
    subset.write_text("3\n1\n")
    chosen = CIFAR10C(str(root), types=["fog"], severities=[1], test_subset=str(subset))
    assert [position for _, _, position in chosen.corruption_of(chosen.test_indices)] == [3, 1]
    assert len(CIFAR10C(str(root), types=["fog"], test_subset=str(subset), num_test=1).test_indices) == 5
    with pytest.raises(ValueError, match="num_test is 5, but the test set has 4 images"):
        _ = CIFAR10C(str(root), num_test=5).test_indices
    subset.write_text("4\n")
    with pytest.raises(ValueError, match="such as 4"):
        _ = CIFAR10C(str(root), test_subset=str(subset)).test_indices


def test_files_are_mapped_and_only_the_chosen_are_needed(tmp_path: Path) -> None:
    write_cifar10c(tmp_path, types=SOME)
    module = CIFAR10C(str(tmp_path), types=SOME)
    module.prepare_data()
    module.setup("test")
    assert isinstance(module.test_source.files["fog"], np.memmap)  # type: ignore[attr-defined]
    with pytest.raises(FileNotFoundError, match=r"gaussian_noise\.npy, .* not found in .*CIFAR-10-C\. Unpack"):
        CIFAR10C(str(tmp_path)).prepare_data()
    with pytest.raises(FileNotFoundError, match="has no training images"):
        module.setup("fit")


def test_the_fingerprint_follows_the_content(root: Path, tmp_path: Path) -> None:
    found = CIFAR10C(str(root), types=SOME).fingerprint()
    assert found == CIFAR10C(str(root), types=SOME, batch_size=2, num_test=1, severities=[2]).fingerprint()
    write_cifar10c(tmp_path, types=SOME)
    assert found == CIFAR10C(str(tmp_path), types=SOME).fingerprint()
    images = np.load(tmp_path / "CIFAR-10-C" / "fog.npy")
    images[0, 0, 0, 0] ^= 1
    np.save(tmp_path / "CIFAR-10-C" / "fog.npy", images)
    assert found != CIFAR10C(str(tmp_path), types=SOME).fingerprint()


@pytest.mark.parametrize(
    ("file", "content", "told"),
    [
        ("fog", np.zeros((20, 32, 32, 3), np.float32), "it should hold 20 x 32 x 32 x 3 bytes"),
        ("fog", np.zeros((20, 3, 32, 32), np.uint8), "it should hold 20 x 32 x 32 x 3 bytes"),
        ("fog", np.zeros((15, 32, 32, 3), np.uint8), "as labels.npy has 20 labels"),
        ("labels", np.tile(np.arange(8, 12), 5), "labels 0..9"),
        ("labels", np.arange(18) % 10, "labels 0..9"),
        ("labels", np.zeros((20, 1), np.uint8), "labels 0..9"),
        ("labels", np.repeat(np.arange(4), 5), "the same labels in the same order"),
        ("labels", np.zeros(20), "labels 0..9"),
    ],
)
def test_other_files_are_refused(file: str, content: np.ndarray, told: str, tmp_path: Path) -> None:
    write_cifar10c(tmp_path, types=SOME)
    np.save(tmp_path / "CIFAR-10-C" / f"{file}.npy", content)
    with pytest.raises(ValueError, match=rf"{file}\.npy is not a file of CIFAR-10-C: .*{told}.*data\.root"):
        CIFAR10C(str(tmp_path), types=SOME).setup("test")


def test_damaged_files_and_pickles_are_refused(tmp_path: Path) -> None:
    write_cifar10c(tmp_path, types=SOME)
    path = tmp_path / "CIFAR-10-C" / "fog.npy"
    whole = path.read_bytes()
    for content in (whole[:5000], b"", b"something else"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"fog\.npy cannot be read .*unpack CIFAR-10-C\.tar"):
            CIFAR10C(str(tmp_path), types=SOME).setup("test")
    np.save(path, np.array([{}], dtype=object))
    with pytest.raises(ValueError, match=r"fog\.npy cannot be read"):
        CIFAR10C(str(tmp_path), types=SOME).setup("test")


def test_bad_choices_are_refused() -> None:
    with pytest.raises(ValueError, match=r"data\.types has 'rain'"):
        CIFAR10C(types=["rain"])
    with pytest.raises(ValueError, match=r"data\.severities is \[6\]"):
        CIFAR10C(severities=[6])
