"""The classifiers of the recipes: each one builds.

Those of configs/classifier have weights, whose file something writes; a training recipe writes its network out.
"""

import inspect
import re
from pathlib import Path

import pytest
import torch
import yaml

import lustral.networks
from lustral.choices import resets
from lustral.diffusion import Denoiser, Generator
from lustral.networks import Classifier, DUNet, TorchClassifier, load_classifier, with_new_head
from lustral.networks.importing import FORMATS
from lustral.networks.importing.command import option_names

CONFIGS = sorted(Path("configs/classifier").glob("*.yaml"))
TRAIN = sorted(path for path in Path("configs/train").glob("*.yaml") if not path.stem.endswith("_mmd"))  # three numbers
USUAL = {"cifar10": "cifar10_wrn28-10", "imagenet": "imagenet_resnet50"}
IMPORTED = [path for path in CONFIGS if "cli.py import" in path.read_text()]


def _parts(path: Path) -> tuple[str, dict]:
    """The class and the options of a classifier's file, or of the network that a training recipe writes out."""
    config = yaml.safe_load(path.read_text())
    if "model" in config:
        trained = config["model"]["init_args"]
        config = next(trained[part] for part in ("denoiser", "generator", "classifier") if part in trained)
    return config["class_path"].rpartition(".")[2], config["init_args"]


def _built(name: str, options: dict) -> torch.nn.Module:
    with torch.device("meta"):
        return getattr(lustral.networks, name)(**{k: v for k, v in options.items() if k != "weights"})


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_classifier_config_builds(path: Path) -> None:
    name, options = _parts(path)
    if name == load_classifier.__name__:
        run = re.fullmatch(r"runs/train/(\w[\w-]*)/weights.safetensors", options["weights"])
        if run is None:
            assert path in IMPORTED
        else:
            assert Path(f"configs/train/{run[1]}.yaml").is_file(), "no recipe trains it"
        return
    assert isinstance(_built(name, options), Classifier)
    assert path in IMPORTED or name == TorchClassifier.__name__, "nothing writes its weights"
    assert "weights" in options


@pytest.mark.parametrize("path", TRAIN, ids=lambda path: path.stem)
def test_the_network_of_a_training_recipe_builds(path: Path) -> None:
    name, options = _parts(path)
    if name == with_new_head.__name__:
        assert options["weights"] in {_parts(other)[1]["weights"] for other in IMPORTED}
        return
    assert isinstance(_built(name, options), Classifier | Denoiser | DUNet | Generator)
    assert "weights" not in options


@pytest.mark.parametrize("piece", ["classifier", "diffusion"])
def test_the_scenes_are_trained_on_with_the_network_and_settings_of_svhn(piece: str) -> None:
    scenes, svhn = (
        yaml.safe_load(Path(f"configs/train/{data}_{piece}.yaml").read_text()) for data in ("streetdigits", "svhn")
    )
    assert scenes | {"data": None} == svhn | {"data": None}


@pytest.mark.parametrize("path", IMPORTED, ids=lambda path: path.stem)
def test_an_imported_classifier_takes_the_place_of_the_usual_one(path: Path) -> None:
    """On the command line: what is left out of its file gets the class's default, not the usual victim's value."""
    data = path.stem.partition("_")[0]
    usual = Path("configs/classifier") / f"{USUAL.get(data, '')}.yaml"
    if usual.is_file():
        words = resets(["test", "-c", f"configs/eval/{data}_undefended.yaml", "--model.classifier", str(path)])
        left_out = _parts(usual)[1].keys() - _parts(path)[1].keys()
        parameters = inspect.signature(getattr(lustral.networks, _parts(path)[0])).parameters
        assert set(words[::2]) == {f"--model.classifier.{name}" for name in left_out & parameters.keys()}


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
