"""CIFAR-10 and SVHN, read from tiny files in their sites' formats."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.io import loadmat, savemat
from torchvision import datasets

from datamodules import CIFAR10, SVHN, ImageDataModule
from datamodules.cifar import FOLDER
from datamodules.pickles import read_array_pickle
from datamodules.transforms import to_tensor
from tests.datamodules.fixtures import write_cifar10, write_svhn

Builder = Callable[..., ImageDataModule]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    return write_svhn(write_cifar10(folder, n=20))


@pytest.fixture(params=[CIFAR10, SVHN])
def build(request: pytest.FixtureRequest, root: Path) -> Builder:
    return lambda **options: request.param(**{"root": str(root), "num_val": 5, **options})


def torchvision_test_set(name: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The reader that everybody uses, told not to compare checksums."""
    if name == "svhn":
        monkeypatch.setattr(datasets.SVHN, "_check_integrity", lambda self: True)
        return datasets.SVHN(root, "test")
    monkeypatch.setattr(datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr(datasets.CIFAR10, "_load_meta", lambda self: None)
    return datasets.CIFAR10(root, train=False)


def test_images_and_labels_are_those_of_torchvision(
    build: Builder, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = build(batch_size=8)
    expected = torchvision_test_set(module.name, root, monkeypatch)
    indices = []
    for image, label, index in module.test_dataloader():
        assert image.dtype == torch.float32
        assert label.dtype == index.dtype == torch.int64
        for row, i in enumerate(index.tolist()):
            assert torch.equal(image[row], to_tensor(expected[i][0]))
            assert label[row] == expected[i][1]
        indices += index.tolist()
    assert indices == list(range(20))
    assert (module.num_classes, module.channels, module.image_size) == (10, 3, 32)


def test_validation_is_taken_from_training(build: Builder) -> None:
    module = build()
    train, val = module.train_parts
    assert len(val) == 5
    assert sorted(train + val) == list(range(len(module.train_source)))
    seen = [i for _, _, index in module.val_dataloader() for i in index.tolist()]
    assert seen == val == build(seed=3).train_parts[1]
    with pytest.raises(ValueError, match="some must be left to train on"):
        build(num_val=1000).setup("fit")


def test_validation_images_can_stand_in_for_the_test_set(build: Builder) -> None:
    module = build(test_on="validation")
    seen = [(image, i) for images, _, index in module.test_dataloader() for image, i in zip(images, index, strict=True)]
    assert [int(i) for _, i in seen] == build().train_parts[1]
    assert all(torch.equal(image, build().train_source.image(int(i))) for image, i in seen)


def test_fingerprint_follows_the_content(build: Builder, tmp_path: Path) -> None:
    fingerprint = build().fingerprint()
    assert build(batch_size=2, num_test=4, seed=8).fingerprint() == fingerprint
    other = write_svhn(write_cifar10(tmp_path, n=19), n=19)
    assert build(root=str(other)).fingerprint() != fingerprint


def test_too_many_test_images_are_refused(build: Builder, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="num_test is 21, but the test set has 20 images"):
        build(num_test=21).setup("test")
    subset = tmp_path / "subset.txt"
    subset.write_text("3\n19\n")
    with pytest.raises(ValueError, match="num_test is 3, but the test set has 2 images"):
        build(num_test=3, test_subset=str(subset))
    assert build(test_subset=str(subset)).test_indices == [3, 19]
    subset.write_text("3\n20\n")
    with pytest.raises(ValueError, match="such as 20: that part has 20 images"):
        build(test_subset=str(subset)).setup("test")


def test_missing_data_say_how_to_get_them(build: Builder, tmp_path: Path) -> None:
    module = build(root=str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match=r"missing: .*nowhere.*--data\.download true.*http"):
        module.prepare_data()
    with pytest.raises(FileNotFoundError, match="missing"):
        module.check("train")


def test_a_test_needs_no_training_files(tmp_path: Path) -> None:
    write_svhn(tmp_path)
    (tmp_path / "train_32x32.mat").unlink()
    module = SVHN(root=str(tmp_path))
    module.prepare_data()
    module.setup("test")
    with pytest.raises(FileNotFoundError, match=r"train_32x32\.mat"):
        module.setup("fit")


def test_a_failed_download_says_what_to_do(build: Builder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(datasets.CIFAR10, "download", fail)
    monkeypatch.setattr(datasets.SVHN, "download", fail)
    with pytest.raises(OSError, match=r"could not be downloaded .*no network.*by hand from http"):
        build(root=str(tmp_path), download=True).prepare_data()


def test_augmentation_depends_on_seed_epoch_and_index(root: Path) -> None:
    def epoch(number: int, **options: Any) -> dict[int, torch.Tensor]:
        loader = CIFAR10(root=str(root), num_val=5, **options).train_dataloader()
        loader.sampler.set_epoch(number)  # type: ignore[attr-defined]
        return {i: x for image, _, index in loader for i, x in zip(index.tolist(), image, strict=True)}

    def differing(first: dict[int, torch.Tensor], second: dict[int, torch.Tensor]) -> float:
        shared = first.keys() & second.keys()
        return sum(not torch.equal(first[i], second[i]) for i in shared) / len(shared)

    reference = epoch(0)
    assert differing(reference, epoch(0, batch_size=7)) == 0
    assert differing(reference, epoch(1)) > 0.9
    assert differing(reference, epoch(0, seed=1)) > 0.9
    plain = epoch(0, augment=False)
    assert differing(plain, reference) > 0.9
    assert differing(plain, epoch(5, augment=False)) == 0
    flipped = epoch(0, crop_padding=0)
    assert all(torch.equal(x, plain[i]) or torch.equal(x, plain[i].flip(-1)) for i, x in flipped.items())
    assert 0.3 < differing(flipped, plain) < 0.7


def test_svhn_extra_follows_the_training_split(root: Path) -> None:
    plain, more = SVHN(root=str(root), num_val=5), SVHN(root=str(root), num_val=5, extra=True)
    assert len(plain.train_source) == 20
    assert len(more.train_source) == 40
    assert torch.equal(more.train_source.image(3), plain.train_source.image(3))
    assert more.train_source.image(20).mul(255).round().byte().numpy().tolist() == (
        loadmat(root / "extra_32x32.mat")["X"][:, :, :, 0].transpose(2, 0, 1).tolist()
    )


class Malicious:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return eval, ("open('owned', 'w').close()",)


def test_a_malicious_pickle_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_cifar10(tmp_path)
    path = tmp_path / FOLDER / "test_batch"
    path.write_bytes(pickle.dumps({"data": Malicious(), "labels": [1]}, protocol=2))
    with pytest.raises(ValueError, match=r"test_batch.*builtin.*\.eval.*--data\.download true"):
        CIFAR10(root=str(tmp_path)).setup("test")
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_plain_arrays_of_any_protocol_are_read(tmp_path: Path, protocol: int) -> None:
    (tmp_path / "file").write_bytes(pickle.dumps({"a": np.arange(3), "b": [1, "x", b"y"]}, protocol=protocol))
    content = read_array_pickle(tmp_path / "file")
    assert content["a"].tolist() == [0, 1, 2]
    assert content["b"] == [1, "x", b"y"]


@pytest.mark.parametrize(
    "batch",
    [
        {"data": np.zeros((2, 3072), np.uint8), "labels": [0]},
        {"data": np.zeros((2, 3072), np.float64), "labels": [0, 1]},
        {"data": np.zeros((2, 3072), np.uint8), "labels": [0, 10]},
        {"data": np.zeros((2, 3072), np.uint8)},
        [1, 2],
    ],
)
def test_a_pickle_of_something_else_is_refused(tmp_path: Path, batch: Any) -> None:
    write_cifar10(tmp_path)
    (tmp_path / FOLDER / "test_batch").write_bytes(pickle.dumps(batch, protocol=2))
    with pytest.raises(ValueError, match=r"test_batch is not a batch of CIFAR-10.*--data\.download true"):
        CIFAR10(root=str(tmp_path)).setup("test")


@pytest.mark.parametrize(("builder", "file"), [(CIFAR10, f"{FOLDER}/test_batch"), (SVHN, "test_32x32.mat")])
def test_a_file_that_was_cut_off_is_refused(builder: Builder, file: str, tmp_path: Path) -> None:
    path = write_svhn(write_cifar10(tmp_path)) / file
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ValueError, match=path.name):
        builder(root=str(tmp_path)).setup("test")


def test_a_mat_file_of_something_else_is_refused(tmp_path: Path) -> None:
    write_svhn(tmp_path)
    savemat(tmp_path / "test_32x32.mat", {"X": np.zeros((32, 32, 3, 2), np.uint8), "y": np.array([[0], [1]])})
    with pytest.raises(ValueError, match=r"labels 1\.\.10"):
        SVHN(root=str(tmp_path)).setup("test")


def test_bad_crop_padding_is_refused() -> None:
    with pytest.raises(ValueError, match="crop_padding is -1"):
        CIFAR10(crop_padding=-1)
