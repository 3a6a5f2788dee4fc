"""What makes each shipped recipe run in seconds: fixture data in the very formats, and the smallest networks."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml

from datamodules.imagenet import LISTS
from datamodules.synsets import read_synsets
from lustral.networks import TimmClassifier, UNetDenoiser, WideResNet, save_network
from tests.datamodules.fixtures import write_cifar10, write_image_folder, write_imagenet, write_svhn

SMALL_DATA = ["--data.num_val", "5", "--data.batch_size", "4", "--data.num_workers", "0"]
WIDE_RESNET = ["--model.classifier.depth", "10", "--model.classifier.width", "1"]
UNET = [
    *("--model.denoiser.widths", "[8,16]", "--model.denoiser.attention", "[false,true]"),
    *("--model.denoiser.blocks", "1", "--model.denoiser.norm_groups", "4"),
]
SONG_UNET = [
    *("--model.denoiser.base_channels", "8", "--model.denoiser.multipliers", "[1,2]"),
    *("--model.denoiser.blocks", "1"),
]
ADM = [
    *("--model.denoiser.base_channels", "32", "--model.denoiser.multipliers", "[1,2]"),
    *("--model.denoiser.blocks", "1", "--model.denoiser.attention_sizes", "[16]"),
]
TIMM = ["--model.classifier.name", "resnet10t"]
# The last callback of a diffusion model's recipe draws a sheet of samples.
SHEET = [
    *("--trainer.callbacks.num_steps", "2", "--trainer.callbacks.num_images", "2", "--trainer.callbacks.rows", "2"),
]

# Recipe: what shrinks its network. A recipe that is not named is small already.
NETWORKS: dict[str, list[str]] = {
    "cifar10_classifier": WIDE_RESNET,
    "cifar10_resnet18": ["--model.classifier.width", "4"],
    "cifar10_resnet56": ["--model.classifier.blocks", "[1,1,1]"],
    "cifar10_shufflenetv2": ["--model.classifier.scale", "0.5"],
    "cifar10_diffusion": SONG_UNET,
    "cifar10_edm_diffusion": SONG_UNET,
    "cifar10_iddpm_diffusion": ADM,
    "imagenet30_resnet18": TIMM,
    "imagenet30_shufflenetv2": ["--model.classifier.scale", "0.5"],
    "imagenet30_inception_resnet_v2": TIMM,
    "streetdigits_classifier": WIDE_RESNET,
    "streetdigits_diffusion": UNET,
    "streetdigits_small_diffusion": UNET,
    "svhn_classifier": WIDE_RESNET,
    "svhn_diffusion": UNET,
}


def _imagenet30(folder: Path) -> list[str]:
    root = write_imagenet(folder / "data", list(read_synsets(LISTS["imagenet30"])))
    sizes = ["--data.image_size", "32", "--model.classifier.image_size", "32"]
    return ["--data.root", str(root), *sizes, *SMALL_DATA]


def _imagenet100(folder: Path) -> list[str]:
    root = write_imagenet(folder / "data", [f"n{number:08d}" for number in range(100)], n=1)
    body = save_network(TimmClassifier("resnet10t", image_size=32), folder / "body.safetensors")
    return ["--data.root", str(root), "--model.classifier.weights", str(body), *SMALL_DATA]


DATA: dict[str, Callable[[Path], list[str]]] = {
    "cifar10": lambda folder: ["--data.root", str(write_cifar10(folder / "data")), *SMALL_DATA],
    "svhn": lambda folder: ["--data.root", str(write_svhn(folder / "data")), *SMALL_DATA],
    "imagenet30": _imagenet30,
    "imagenet100": _imagenet100,
    "streetdigits": lambda folder: SMALL_DATA,
    "digits": lambda folder: [],
}


def training(recipe: Path, folder: Path) -> list[str]:
    """Command-line words that shrink a training recipe; fixture data are written below ``folder``."""
    data = DATA[recipe.stem.partition("_")[0]](folder)
    sheet = SHEET if recipe.stem.endswith("_diffusion") else []
    return [*data, *NETWORKS.get(recipe.stem, []), *sheet]


# Evaluations -----------------------------------------------------------------------------------------------

IMAGENET_PIXELS, IMAGENET_DENOISER_PIXELS = 14, 16
"""Smaller than 224 and 256, and as different."""

# Class: the options that make it small.
SMALLEST: dict[str, dict[str, Any]] = {
    "WideResNet": {"depth": 10, "width": 1},
    "CifarResNet": {"blocks": [1, 1, 1, 1], "width": 4},
    "TimmClassifier": {"name": "resnet10t", "num_classes": 4, "image_size": IMAGENET_PIXELS},
    "SongUNetDenoiser": {"base_channels": 8, "multipliers": [1, 2], "blocks": 1},
    "UNetDenoiser": {"widths": [8, 16], "attention": [False, True], "blocks": 1, "norm_groups": 4},
    "ADMDenoiser": {
        "image_size": IMAGENET_DENOISER_PIXELS,
        "base_channels": 32,
        "multipliers": [1, 2],
        "blocks": 1,
        "attention_sizes": [8],
    },
    "DiffPure": {"num_steps": 2},
    "GNSP": {"rounds": [[30, 1], [50, 1]]},
    "GDMP": {"num_steps": 2, "num_rounds": 2},
    "LangevinPurifier": {"num_steps": 2},
    "EPS": {"num_times": 2},
}


class Shrinker:
    """Shrinks whole evaluations: small weights files for every network, and references made with them.

    Args:
        folder: where files are written, once each.
        digits: weights files of a "classifier" and a "denoiser" of digits.
        cli: the front door, which makes the references.
    """

    def __init__(self, folder: Path, digits: dict[str, Path], cli: Callable[..., int]) -> None:
        self.folder, self.digits, self.cli = folder, digits, cli

    def evaluation(self, recipe: Path, layer: Path | None = None) -> list[str]:
        """Command-line words that shrink the evaluation ``recipe``, with a second layer that chooses its attack."""
        model, folder = read(recipe)["model"]["init_args"], recipe.parent
        words = [*self.data(recipe), *self.network(*follow(model["classifier"], folder), "--model.classifier")]
        words += self.purifier(*follow(model["purifier"], folder), "--model.purifier")
        chosen = recipe if layer is None else layer
        attack, place = follow(read(chosen)["model"]["init_args"]["attack"], chosen.parent)
        if "surrogate" in attack["init_args"]:
            words += self.purifier(*follow(attack["init_args"]["surrogate"], place), "--model.attack.surrogate")
        return words

    def data(self, recipe: Path) -> list[str]:
        """Fixture data of the recipe's data set."""
        name, small = recipe.stem.partition("_")[0], SMALL_DATA
        root = self.folder / name
        if name == "cifar10":
            if not root.exists():
                write_cifar10(root, n=20, num_test=20)
                (root / "subset.txt").write_text("7\n3\n11\n0\n")
            subset = ["--data.test_subset", str(root / "subset.txt")] if recipe.parent.name == "eval" else []
            return ["--data.root", str(root), *subset, *small]
        if name == "svhn":
            return ["--data.root", str(root if root.exists() else write_svhn(root)), *small]
        if name == "image":
            root = root if root.exists() else write_image_folder(root, [str(label) for label in range(10)], n=1)
            return ["--data.root", str(root), *small]
        if name == "imagenet":
            if not root.exists():
                write_imagenet(root, [f"n{number:08d}" for number in range(4)])
            return ["--data.root", str(root), "--data.image_size", str(IMAGENET_PIXELS), *small]
        return []

    def purifier(self, part: dict[str, Any], folder: Path, key: str) -> list[str]:
        """Fewer steps of a small denoiser at its own size; SSNI's reference is one of that denoiser."""
        name, given = part["class_path"].rpartition(".")[2], part.get("init_args", {})
        words = _as_words(key, SMALLEST.get(name, {}))
        if "denoiser" in given:
            words += self.network(*follow(given["denoiser"], folder), f"{key}.denoiser")
        if "scorer" in given:
            words += self.network(*follow(given["scorer"], folder), f"{key}.scorer")
        if "resize_to" in given:
            words += [f"{key}.resize_to", str(IMAGENET_DENOISER_PIXELS)]
        if name == "SSNI":
            words += self.purifier(*follow(given["purifier"], folder), f"{key}.purifier")
            words += _as_words(f"{key}.statistic", SMALLEST["EPS"])
            file = Path(given["reference"]["init_args"]["file"])
            words += [f"{key}.reference.file", str(self.reference(file.parent.name))]
        return words

    def reference(self, name: str) -> Path:
        """``reference.json`` of the recipe ``name``, made by its own command."""
        recipe, run = Path("configs/reference") / f"{name}.yaml", self.folder / "reference" / name
        if not (run / "reference.json").exists():
            given = read(recipe)["model"]["init_args"]
            words = [*self.data(recipe), *self.network(*follow(given["denoiser"], recipe.parent), "--model.denoiser")]
            if name.startswith("imagenet"):
                words += ["--data.image_size", str(IMAGENET_DENOISER_PIXELS)]
            words += [*_as_words("--model.statistic", SMALLEST["EPS"]), "--trainer.accelerator", "cpu"]
            assert self.cli("validate", "-c", recipe, "--trainer.default_root_dir", run, *words) == 0
        return run / "reference.json"

    def network(self, part: dict[str, Any], folder: Path, key: str) -> list[str]:
        """A small network of the class that a file chooses, and weights for it."""
        name, given = part["class_path"].rpartition(".")[2], part["init_args"]
        if name.startswith("load_"):
            return [f"{key}.weights", str(self._trained(given["weights"], name))]
        options = {**given, **SMALLEST[name]}
        choices = {option: options[option] for option in ("schedule_type", "labels") if option in options}
        path = self.folder / "weights" / Path(given["weights"]).name
        if not path.exists():
            module = importlib.import_module("lustral.networks")
            built = {option: value for option, value in options.items() if option not in ("weights", *choices)}
            with torch.random.fork_rng():
                torch.manual_seed(0)
                save_network(getattr(module, name)(**built), path)
        return [*_as_words(key, SMALLEST[name]), f"{key}.weights", str(path)]

    def _trained(self, weights: str, loader: str) -> Path:
        """In the place of what a training recipe would have written."""
        kind = loader.removeprefix("load_")
        if "digits" in weights:
            return self.digits[kind]
        path = self.folder / "weights" / f"{Path(weights).parent.name}.safetensors"
        if not path.exists():
            with torch.random.fork_rng():
                torch.manual_seed(0)
                small = WideResNet(10, 1) if kind == "classifier" else UNetDenoiser(**SMALLEST["UNetDenoiser"])
            save_network(small, path)
        return path


def attack(recipe: Path, folder: Path, **options: Any) -> list[str]:
    """Command-line words that give options to the attack of a recipe; the members of an ensemble get them in a copy of
    its file, below ``folder``, and one target class instead of many."""
    part, place = follow(read(recipe)["model"]["init_args"]["attack"], recipe.parent)
    if "attacks" not in part["init_args"]:
        return _as_words("--model.attack", options)
    members = [follow(member, place)[0] for member in part["init_args"]["attacks"]]
    for member in members:
        member["init_args"] |= options | ({"num_targets": 1} if "num_targets" in member["init_args"] else {})
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"attack_of_{recipe.stem}.yaml"
    path.write_text(yaml.safe_dump({**part, "init_args": {**part["init_args"], "attacks": members}}))
    return ["--model.attack", str(path)]


def read(path: Path) -> dict[str, Any]:
    """The content of a YAML file."""
    return yaml.safe_load(path.read_text())


def follow(value: Any, folder: Path) -> tuple[dict[str, Any], Path]:
    """A part of a recipe and the folder that its own files are relative to, whether it is written there, picked, or a
    bare class."""
    if isinstance(value, str) and value.endswith(".yaml"):
        return read(folder / value), (folder / value).parent
    return ({"class_path": value} if isinstance(value, str) else value), folder


def _as_words(key: str, options: dict[str, Any]) -> list[str]:
    return [word for name, value in options.items() for word in (f"{key}.{name}", yaml_word(value))]


def yaml_word(value: Any) -> str:
    """A value as the command line takes it."""
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("\n").removesuffix("\n...")
