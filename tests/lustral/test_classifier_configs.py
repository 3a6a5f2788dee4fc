"""The classifiers of configs/classifier: each one builds, and its weights file is one that something writes."""

import re
from pathlib import Path

import pytest
import torch
import yaml

import lustral.networks
from lustral.networks import Classifier, load_classifier, with_new_head
from lustral.networks.importing import FORMATS
from lustral.networks.importing.command import option_names
from lustral.recipes import check_layers

CONFIGS = sorted(Path("configs/classifier").glob("*.yaml"))
IMPORTED = [path for path in CONFIGS if "cli.py import" in path.read_text()]


def _parts(path: Path) -> tuple[str, dict]:
    config = yaml.safe_load(path.read_text())
    return config["class_path"].rpartition(".")[2], config["init_args"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_classifier_config_builds(path: Path) -> None:
    name, options = _parts(path)
    if name in (load_classifier.__name__, with_new_head.__name__):
        run = re.fullmatch(r"runs/train/(\w[\w-]*)/weights.safetensors", options["weights"])
        if run is None:
            assert options["weights"] in {_parts(other)[1]["weights"] for other in IMPORTED}
        else:
            assert Path(f"configs/train/{run[1]}.yaml").is_file(), "no recipe trains it"
        return
    with torch.device("meta"):
        network = getattr(lustral.networks, name)(**{k: v for k, v in options.items() if k != "weights"})
    assert isinstance(network, Classifier)
    assert (path in IMPORTED) == ("weights" in options)


@pytest.mark.parametrize("path", IMPORTED, ids=lambda path: path.stem)
def test_an_imported_classifier_takes_the_place_of_the_usual_one(path: Path) -> None:
    """On the command line: nothing of the usual victim's file leaks into it."""
    data = path.stem.partition("_")[0]
    if data in ("cifar10", "imagenet"):
        check_layers(["test", "-c", f"configs/eval/{data}_undefended.yaml", "--model.classifier", str(path)])


@pytest.mark.parametrize("path", IMPORTED, ids=lambda path: path.stem)
def test_the_import_command_of_a_config_writes_its_file(path: Path) -> None:
    words = path.read_text().replace("\\\n#", " ")
    command = re.search(r"cli\.py import(.*)", words)
    assert command is not None
    options = dict(re.findall(r"--(\w+) ([^-]\S*)", command[1]))
    assert options["output"] == _parts(path)[1]["weights"]
    given = dict(word.split("=") for word in re.findall(r"\w+=\S+", command[1]))
    form = FORMATS[options["format"]]
    assert set(option_names(form, required=True)) <= set(given) <= set(option_names(form))
    if options["format"] in ("torchvision", "timm") and "name" in _parts(path)[1]:
        assert given["name"] == _parts(path)[1]["name"]
