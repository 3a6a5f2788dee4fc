"""The recipes' data part: each file builds its module from the repository's root, without any data there."""

from pathlib import Path

import pytest
import yaml

import datamodules
from datamodules import ImageDataModule
from datamodules.subsets import SHIPPED, read_indices
from tests.datamodules.fixtures import write_cifar10

ROOT = Path(datamodules.__file__).resolve().parents[1]


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "data").glob("*.yaml")), ids=lambda path: path.stem)
def test_each_config_builds(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    config = yaml.safe_load(path.read_text())
    package, _, name = config["class_path"].partition(".")
    assert package == "datamodules"
    module = getattr(datamodules, name)(**config["init_args"])
    assert isinstance(module, ImageDataModule)
    for option, value in config["init_args"].items():
        assert getattr(module, option) == value


def test_the_shared_512_are_tested_in_the_papers_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    options = yaml.safe_load((ROOT / "configs/data/cifar10_512.yaml").read_text())["init_args"]
    write_cifar10(tmp_path, n=4, num_test=10000)
    module = datamodules.CIFAR10(**{**options, "root": str(tmp_path), "num_workers": 0, "num_test": 5})
    _, _, index = next(iter(module.test_dataloader()))
    assert index.tolist() == read_indices(SHIPPED / "cifar10_512.txt")[:5]
