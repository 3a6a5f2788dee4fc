"""ImageNet and its subsets, in both layouts."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, Resize

from datamodules import ImageNet
from datamodules.keyed import keyed_generator
from datamodules.subsets import SHIPPED
from datamodules.synsets import read_synsets
from datamodules.transforms import random_resized_crop, resize_center_crop, to_tensor
from tests.datamodules.fixtures import write_imagenet

SYNSETS = ("n02100000", "n01440764", "n03000000", "n01000000", "n09000000")


@pytest.fixture(scope="module", params=["folders", "archive"])
def root(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_imagenet(tmp_path_factory.mktemp("imagenet"), SYNSETS, n=3, layout=request.param)


def build(root: Path, **options: Any) -> ImageNet:
    return ImageNet(**{"root": str(root), "image_size": 16, "num_val": 2, "batch_size": 4, **options})


def test_labels_are_places_among_the_sorted_synsets(root: Path) -> None:
    module = build(root)
    batches = list(module.test_dataloader())
    image, label, index = (torch.cat(parts) for parts in zip(*batches, strict=True))
    assert image.dtype == torch.float32
    assert image.shape == (15, 3, 16, 16)
    assert 0 <= image.min() <= image.max() <= 1
    assert label.tolist() == sorted(list(range(5)) * 3)
    assert index.tolist() == list(range(15))
    assert module.class_names == tuple(sorted(SYNSETS))
    assert module.num_classes == 5


def test_a_list_chooses_classes(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("# two\nn03000000 a thing\nn01440764\n")
    module = build(root, subset=str(path))
    assert module.class_names == ("n01440764", "a thing")
    assert module.test_source.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert len(module.train_source) == 6
    assert all(name.startswith(("n01440764/", "n03000000/")) for name in module.test_source.names)  # type: ignore[attr-defined]


def test_missing_classes_are_named(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("n01440764\nn08888888\n")
    with pytest.raises(FileNotFoundError, match=r"1 of the 2 classes .*: n08888888"):
        build(root, subset=str(path)).prepare_data()
    with pytest.raises(FileNotFoundError, match=r"30 of the 30 classes of imagenet30 .*, \.\.\."):
        build(root, subset="imagenet30").prepare_data()


@pytest.mark.parametrize(("subset", "file"), [("imagenet100", "imagenet100_cmc.txt"), ("imagenet30", "imagenet30.txt")])
def test_shipped_subsets_are_known_without_data(subset: str, file: str) -> None:
    module = ImageNet(root="nowhere", subset=subset)
    assert module.name == subset
    assert module.class_names == tuple(read_synsets(SHIPPED / file).values())


def test_fingerprint_knows_the_files_and_not_their_place(tmp_path: Path) -> None:
    folders = write_imagenet(tmp_path / "a", SYNSETS, layout="folders")
    archive = write_imagenet(tmp_path / "b", SYNSETS, layout="archive")
    fingerprint = build(folders).fingerprint()
    assert build(archive).fingerprint() == fingerprint
    assert build(folders, num_test=3, batch_size=1, augment=False).fingerprint() == fingerprint
    assert build(folders, resize=20).fingerprint() != fingerprint
    file = next((archive / "val.X" / SYNSETS[0]).iterdir())
    file.write_bytes(file.read_bytes() + b"more")
    assert build(archive).fingerprint() != fingerprint


def test_missing_data_say_how_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"neither val nor val\.X\* found in .*image-net\.org"):
        build(tmp_path).prepare_data()
    (tmp_path / "val").mkdir()
    (tmp_path / "val" / "ILSVRC2012_val_00000001.JPEG").touch()
    with pytest.raises(FileNotFoundError, match="one folder a class"):
        build(tmp_path).prepare_data()
    (tmp_path / "val" / "n01440764").mkdir()
    with pytest.raises(FileNotFoundError, match="n01440764 has no image"):
        build(tmp_path).setup("test")
    (tmp_path / "val.X").mkdir()
    with pytest.raises(ValueError, match=r"both val and val\.X"):
        build(tmp_path).prepare_data()


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    write_imagenet(tmp_path, SYNSETS[:1])
    file = next((tmp_path / "val" / SYNSETS[0]).iterdir())
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match=rf"{file.name} cannot be read as an image"):
        list(build(tmp_path).test_dataloader())


def test_an_image_bomb_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow refuses it with an error of its own, which is no OSError."""
    write_imagenet(tmp_path, SYNSETS[:1])
    file = next((tmp_path / "val" / SYNSETS[0]).iterdir())
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1)
    with pytest.raises(ValueError, match=rf"{file.name} cannot be read as an image .*decompression bomb"):
        _ = next(iter(build(tmp_path).test_dataloader()))


@pytest.mark.parametrize("options", [{"image_size": 0}, {"image_size": 32, "resize": 31}])
def test_bad_sizes_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="give 1 <= image_size <= resize"):
        ImageNet(**options)  # type: ignore[arg-type]


def test_an_unknown_subset_is_refused() -> None:
    with pytest.raises(FileNotFoundError, match=r"neither imagenet100 nor imagenet30, .* at .*imagenet_100"):
        ImageNet(subset="imagenet_100")


@pytest.mark.parametrize("size", [(50, 37), (37, 50), (300, 200), (16, 16)])
def test_a_test_image_is_cut_as_torchvision_does(size: tuple[int, int]) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8))
    expected = Compose([Resize(36), CenterCrop(31)])(image)
    assert torch.equal(to_tensor(resize_center_crop(image, 36, 31)), to_tensor(expected))


@pytest.mark.parametrize("size", [(50, 37), (400, 4)])
def test_a_random_part_has_the_size_asked_for(size: tuple[int, int]) -> None:
    image = Image.new("RGB", size)
    crops = [random_resized_crop(image, 16, keyed_generator("test", 0, 0, i)) for i in range(20)]
    assert {crop.size for crop in crops} == {(16, 16)}


def test_training_images_depend_on_epoch_and_index(root: Path) -> None:
    def epoch(number: int) -> list[torch.Tensor]:
        module = build(root)
        loader = module.train_dataloader()
        loader.sampler.set_epoch(number)  # type: ignore[attr-defined]
        index, image = torch.cat([b[2] for b in loader]), torch.cat([b[0] for b in loader])
        return [image[index == i] for i in range(15)]

    assert all(map(torch.equal, epoch(0), epoch(0)))
    assert not all(torch.equal(a, b) for a, b in zip(epoch(0), epoch(1), strict=True) if len(a) and len(b))
