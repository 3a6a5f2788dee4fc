"""What makes each shipped recipe run in seconds: fixture data in the very formats, and the smallest networks."""

import copy
import importlib
import inspect
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from datamodules.imagenet import LISTS
from datamodules.synsets import read_synsets
from lustral.detectors import Reference
from lustral.networks import (
    Classifier,
    DUNet,
    GANGenerator,
    PreconditionedDenoiser,
    SongUNetDenoiser,
    TimmClassifier,
    UNetDenoiser,
    WideResNet,
    save_network,
)
from lustral.recipes import imported
from lustral.tables import Choice
from lustral.tables.choice import in_one_line
from tests.datamodules.fixtures import write_cifar10, write_cifar10c, write_image_folder, write_imagenet, write_svhn

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
ADM_OF_IMAGENET = [
    *("--data.image_size", "16", "--data.resize", "16", "--model.denoiser.image_size", "16"),
    *("--model.denoiser.base_channels", "32", "--model.denoiser.multipliers", "[1,2]"),
    *("--model.denoiser.blocks", "1", "--model.denoiser.attention_sizes", "[8]", "--model.denoiser.head_width", "32"),
    *("--model.loss.distance", "lustral.diffusion.SquaredDistance"),  # LPIPS needs weights, which are not at hand
]
TIMM = ["--model.classifier.name", "resnet10t"]
# The last callback of a diffusion model's recipe draws a sheet of samples.
SHEET = ["--trainer.callbacks.num_images", "2", "--trainer.callbacks.rows", "2"]

# Recipe: what shrinks its network. A recipe that is not named is small already.
NETWORKS: dict[str, list[str]] = {
    "cifar10_classifier": WIDE_RESNET,
    "cifar10_consistency": SONG_UNET,
    "cifar10_resnet18": ["--model.classifier.width", "4"],
    "cifar10_resnet50": ["--model.classifier.width", "4"],
    "cifar10_resnet56": ["--model.classifier.blocks", "[1,1,1]"],
    "cifar10_shufflenetv2": ["--model.classifier.scale", "0.5"],
    "cifar10_diffusion": SONG_UNET,
    "cifar10_edm_diffusion": SONG_UNET,
    "cifar10_iddpm_diffusion": ADM,
    "imagenet100_consistency": ADM_OF_IMAGENET,
    "imagenet30_resnet18": TIMM,
    "imagenet30_resnet50": TIMM,
    "imagenet30_shufflenetv2": ["--model.classifier.scale", "0.5"],
    "imagenet30_inception_resnet_v2": TIMM,
    "streetdigits_classifier": WIDE_RESNET,
    "streetdigits_diffusion": UNET,
    "streetdigits_small_consistency": [*SONG_UNET, "--model.denoiser.attention_sizes", "[16]"],
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
    return ["--data.root", str(root), *SMALL_DATA]


def _body(folder: Path) -> list[str]:
    """What ImageNet-100's classifier is a new head on."""
    body = save_network(TimmClassifier("resnet10t", image_size=32), folder / "body.safetensors")
    return ["--model.classifier.weights", str(body)]


DATA: dict[str, Callable[[Path], list[str]]] = {
    "cifar10": lambda folder: ["--data.root", str(write_cifar10(folder / "data")), *SMALL_DATA],
    "svhn": lambda folder: ["--data.root", str(write_svhn(folder / "data")), *SMALL_DATA],
    "imagenet30": _imagenet30,
    "imagenet100": _imagenet100,
    "imagenet": lambda folder: [
        *("--data.root", str(write_imagenet(folder / "data", [f"n{number:08d}" for number in range(4)], n=4))),
        *("--data.image_size", str(IMAGENET_PIXELS), *SMALL_DATA),
    ],
    "streetdigits": lambda folder: SMALL_DATA,
    "digits": lambda folder: [],
}


def training(recipe: Path, folder: Path) -> list[str]:
    """Command-line words that shrink a training recipe; fixture data are written below ``folder``."""
    small = [*DATA[recipe.stem.partition("_")[0]](folder), *NETWORKS.get(recipe.stem, [])]
    if recipe.stem == "imagenet100_classifier":
        small += _body(folder)
    if recipe.stem.endswith(("_diffusion", "_consistency", "_gan")):
        small += SHEET
    if recipe.stem.endswith("_diffusion"):
        small += ["--trainer.callbacks.num_steps", "2"]
    if recipe.stem.endswith("_denoiser"):
        small += _image_denoiser(recipe, folder)
    if recipe.stem.endswith("_mmd"):
        small += _mmd_kernel(recipe, folder)
    return small


def _mmd_kernel(recipe: Path, folder: Path) -> list[str]:
    """Small networks, eight images to train on and as many held out, and an attack of one step."""
    given = followed(recipe)["model"]["init_args"]
    shrinker = _with_digits(folder)
    small = shrinker.network(given["classifier"], "model.classifier")
    features = given["kernel"]["init_args"]["features"]["init_args"]["classifier"]
    small |= shrinker.network(features, "model.kernel.features.classifier")
    counts = {"num_images": 4, "num_held_out": 4, "num_reference": 2, "group_sizes": [2], "trials": 5}
    small |= _under("model", counts) | {"model.attack.num_steps": 1, "model.attack.num_targets": 1}
    return as_words("", small)


def _with_digits(folder: Path) -> "Shrinker":
    """A shrinker with a classifier of digits, and without references."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        digits = save_network(WideResNet(10, 1, channels=1, image_size=8), folder / "digits.safetensors")
    return Shrinker(folder, {"classifier": digits}, lambda *words: 1)


def _image_denoiser(recipe: Path, folder: Path) -> list[str]:
    """Of DAD: small networks, a kernel with numbers instead of a file, and an attack of one step."""
    given = followed(recipe)["model"]["init_args"]
    shrinker = _with_digits(folder)
    small = {"model.denoiser.widths": [4, 4], "model.denoiser.depths": [1, 1]}
    small |= shrinker.network(given["classifier"], "model.classifier")
    small |= shrinker.kernel(given["kernel"], "model.kernel")
    small |= {"model.attack.num_steps": 1, "model.attack.num_targets": 1}
    if recipe.stem.startswith("imagenet"):
        small["model.denoiser.image_size"] = IMAGENET_PIXELS
    if recipe.stem.startswith("streetdigits"):
        small["data.num_train"] = 12
    return as_words("", small)


# Evaluations -----------------------------------------------------------------------------------------------

IMAGENET_PIXELS, IMAGENET_DENOISER_PIXELS = 14, 16
"""Smaller than 224 and 256, and as different."""

# Class: the options that make it small.
SMALLEST: dict[str, dict[str, Any]] = {
    "WideResNet": {"depth": 10, "width": 1},
    "SwishWideResNet": {"depth": 10, "width": 1},
    "PreActResNet": {"width": 4},
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
    "EPS": {"num_times": 2},
}

GROUP = 2
"""Images that a small DAD judges together."""

Part = dict[str, Any]


class Shrinker:
    """Shrinks whole evaluations: small weights files for every network, and references made with them.

    Args:
        folder: where files are written, once each.
        digits: weights files of a "classifier" and a "denoiser" of digits.
        cli: the front door, which makes the references.
    """

    def __init__(self, folder: Path, digits: dict[str, Path], cli: Callable[..., int]) -> None:
        self.folder, self.digits, self.cli = folder, digits, cli

    def evaluation(self, choice: Choice) -> list[str]:
        """Command-line words that shrink an evaluation: sizes, counts and files. What else its options set stays."""
        parts = choice.parts()
        small = self.data(parts["data"]) | self.network(parts["classifier"], "model.classifier")
        if parts["purifier"] is not None:
            small |= self.chosen(whole(parts["purifier"]), "model.purifier")
        surrogate = ((parts["attack"] or {}).get("init_args") or {}).get("surrogate")
        if surrogate is not None:
            small |= self.surrogate(whole(surrogate), "model.attack.surrogate")
        return as_words("", small)

    def data(self, part: Part) -> dict[str, Any]:
        """Fixture data in the place of a data module's."""
        name, given = part["class_path"].rpartition(".")[2], part.get("init_args") or {}
        small: dict[str, Any] = {"data.num_val": 5, "data.batch_size": 4, "data.num_workers": 0}
        root = self.folder / name
        if name == "Digits":
            return {}
        if name == "CIFAR10":
            if not root.exists():
                write_cifar10(root, n=20, num_test=20)
                (root / "subset.txt").write_text("7\n3\n11\n0\n")
            small |= {"data.test_subset": str(root / "subset.txt")} if "test_subset" in given else {}
        elif name == "CIFAR10C":
            if not root.exists():
                write_cifar10c(root)
            return {"data.root": str(root), "data.batch_size": 4}
        elif name == "SVHN" and not root.exists():
            write_svhn(root)
        elif name == "ImageFolder" and not root.exists():
            write_image_folder(root, [str(label) for label in range(10)], n=1)
        elif name == "ImageNet":
            subset = given.get("subset")
            root = self.folder / f"{name}-{subset}"
            if not root.exists():
                write_imagenet(root, list(read_synsets(LISTS[subset])) if subset else [f"n{k:08d}" for k in range(4)])
            small["data.image_size"] = IMAGENET_PIXELS
            if "test_subset" in given:
                (root / "subset.txt").write_text("3\n0\n2\n1\n")
                small["data.test_subset"] = str(root / "subset.txt")
        return small if name == "StreetDigits" else {"data.root": str(root), **small}

    def chosen(self, part: Part, key: str) -> dict[str, Any]:
        """Options that make a purifier small; a file of its own for a chain, in which no word reaches a part."""
        given = part.get("init_args") or {}
        if "purifiers" not in given:
            return self.purifier(part, key)
        path = self.folder / "chains" / f"{len(list(self.folder.glob('chains/*')))}.yaml"
        path.parent.mkdir(exist_ok=True)
        small = {**part, "init_args": {**given, "purifiers": [self.within(each) for each in given["purifiers"]]}}
        path.write_text(yaml.safe_dump(small))
        return {key: str(path)}

    def within(self, part: Part) -> Part:
        """A purifier with the options that make it small in their places."""
        part = copy.deepcopy(whole(part))
        for key, value in self.purifier(part, "at").items():
            place, *names = key.split(".")[1:]
            options = part.setdefault("init_args", {})
            while names:
                options = options[place].setdefault("init_args", {})
                place, *names = names
            options[place] = value
        return part

    def members(self, part: Part) -> Part:
        """An attack; the surrogates of an ensemble's members made small."""
        given = part.get("init_args") or {}
        made = []
        for member in map(whole, given.get("attacks", [])):
            options = dict(member.get("init_args") or {})
            surrogate = options.get("surrogate")
            if surrogate is not None and not whole(surrogate)["class_path"].endswith(".Variant"):
                options["surrogate"] = self.within(surrogate)
            made.append({**member, "init_args": options})
        return {**part, "init_args": {**given, "attacks": made}} if made else part

    def purifier(self, part: Part, key: str) -> dict[str, Any]:
        """Fewer steps of a small denoiser at its own size; SSNI's reference is one of that denoiser."""
        name, given = part["class_path"].rpartition(".")[2], part.get("init_args") or {}
        small = _under(key, _fewest(given, 2))
        if name in ("DAD", "DADPerSample"):
            return small | self.detecting(given, key)
        for network in ("denoiser", "scorer"):
            if network in given:
                small |= self.network(given[network], f"{key}.{network}")
        if "generator" in given:
            inner = whole(given["generator"])
            if inner["class_path"].endswith(".load_generator"):
                small |= self.network(inner, f"{key}.generator")
            else:
                small |= self.network(inner["init_args"]["denoiser"], f"{key}.generator.denoiser")
            small[f"{key}.num_latents"] = 2
        if given.get("resize_to") is not None:
            small[f"{key}.resize_to"] = IMAGENET_DENOISER_PIXELS
        if name == "SSNI":
            small |= self.purifier(whole(given["purifier"]), f"{key}.purifier")
            small |= _under(f"{key}.statistic", SMALLEST.get(whole(given["statistic"])["class_path"][-3:], {}))
            file = Path(given["reference"]["init_args"]["file"])
            small[f"{key}.reference.file"] = str(self.reference(file.parent.name))
        return small

    def detecting(self, given: Part, key: str) -> dict[str, Any]:
        """DAD's denoiser, kernel and reference, a number for its threshold, and small groups."""
        detector, where = whole(given["detector"])["init_args"], f"{key}.detector"
        small = self.purifier(whole(given["denoise"]), f"{key}.denoise")
        small |= self.kernel(whole(detector["kernel"]), f"{where}.kernel") | {f"{key}.threshold": 0.05}
        reference = detector["reference"]["init_args"]
        shape = self._shape_of(Path(reference["file"]).parent.name)
        file = self.folder / "reference" / f"{'x'.join(map(str, shape))}.safetensors"
        if not file.exists():
            images = torch.rand(3, *shape, generator=torch.Generator().manual_seed(0))
            Reference(images, torch.arange(3), {}).write(file)
        small |= {f"{where}.reference.file": str(file)}
        small |= {f"{where}.reference.num_images": 3} if "num_images" in reference else {}
        return small | ({f"{key}.group_size": GROUP} if "group_size" in given else {})

    def kernel(self, part: Part, key: str) -> dict[str, Any]:
        """Numbers in the place of a file, on the features of a small classifier."""
        classifier = part["init_args"]["features"]["init_args"]["classifier"]
        small = self.network(classifier, f"{key}.features.classifier")
        return small | {f"{key}.weights": None, f"{key}.feature_bandwidth": 20.0, f"{key}.pixel_bandwidth": 10.0}

    @staticmethod
    def _shape_of(run: str) -> tuple[int, int, int]:
        """Of the images of a run's data set."""
        name = run.partition("_")[0]
        size = {"digits": 8, "imagenet": IMAGENET_PIXELS}.get(name, 32)
        return (1 if name == "digits" else 3, size, size)

    def surrogate(self, part: Part, key: str) -> dict[str, Any]:
        """The purifier's own in the fewest steps, or another purifier."""
        if not part["class_path"].endswith(".Variant"):
            return self.purifier(part, key)
        return {f"{key}.changes": _fewer_changes(part["init_args"]["changes"])}

    def reference(self, name: str) -> Path:
        """``reference.json`` of the recipe ``name``, made by its own command."""
        recipe, run = Path("configs/reference") / f"{name}.yaml", self.folder / "reference" / name
        if not (run / "reference.json").exists():
            words = as_words("", self.of_reference(recipe))
            if name.startswith("imagenet"):
                words += ["--data.image_size", str(IMAGENET_DENOISER_PIXELS)]
            words += [*as_words("model.statistic", SMALLEST["EPS"]), "--trainer.accelerator", "cpu"]
            assert self.cli("validate", "-c", recipe, "--trainer.default_root_dir", run, *words) == 0
        return run / "reference.json"

    def of_reference(self, recipe: Path) -> dict[str, Any]:
        """Data and the network that scores them."""
        content = followed(recipe)
        return self.data(content["data"]) | self.network(content["model"]["init_args"]["denoiser"], "model.denoiser")

    def network(self, part: Part, key: str) -> dict[str, Any]:
        """A small network of the class that a file chooses, and weights for it."""
        name, given = part["class_path"].rpartition(".")[2], part["init_args"]
        if name.startswith("load_"):
            return {f"{key}.weights": str(self._trained(given["weights"], name))}
        small = dict(SMALLEST[name])
        if name == "ADMDenoiser" and given["image_size"] == 32:  # CIFAR-10's images keep their size
            small |= {"image_size": 32, "attention_sizes": [16]}
        options = {**given, **small}
        choices = {option: options[option] for option in ("schedule_type", "labels") if option in options}
        path = self.folder / "weights" / Path(given["weights"]).name
        if not path.exists():
            module = importlib.import_module("lustral.networks")
            built = {option: value for option, value in options.items() if option not in ("weights", *choices)}
            with torch.random.fork_rng():
                torch.manual_seed(0)
                save_network(getattr(module, name)(**built), path)
        return _under(key, small) | {f"{key}.weights": str(path)}

    def _trained(self, weights: str, loader: str) -> Path:
        """In the place of what a training recipe would have written."""
        kind, run = loader.removeprefix("load_"), Path(weights).parent.name
        if run.startswith("digits_") and kind in self.digits:
            return self.digits[kind]
        path = self.folder / "weights" / f"{run}.safetensors"
        if not path.exists():
            with torch.random.fork_rng():
                torch.manual_seed(0)
                channels, size, _ = self._shape_of(run)
                if kind == "generator":
                    small: nn.Module = GANGenerator(size, channels, 4, [4, 4])
                elif kind == "image_denoiser":
                    small = DUNet(size, channels, (4, 4), (1, 1))
                else:
                    small = self._classifier_of(run) if kind == "classifier" else self._denoiser_of(run)
            save_network(small, path)
        return path

    def _classifier_of(self, run: str) -> Classifier:
        """A small one of a training recipe's classes; of ImageNet's fixture where that is trained on."""
        if run.startswith("imagenet"):
            classes = 30 if run.startswith("imagenet30_") else 4
            return TimmClassifier("resnet10t", num_classes=classes, image_size=IMAGENET_PIXELS)
        return WideResNet(10, 1)

    def _denoiser_of(self, run: str) -> PreconditionedDenoiser:
        """A small one on the schedule of a training recipe's."""
        given = followed(Path("configs/train") / f"{run}.yaml")["model"]["init_args"]["denoiser"]["init_args"]
        if given["preconditioning"] != "consistency":
            return UNetDenoiser(**SMALLEST["UNetDenoiser"], preconditioning=given["preconditioning"])
        of_imagenet = run.startswith("imagenet")
        small = SMALLEST["SongUNetDenoiser"] | {
            "image_size": IMAGENET_PIXELS if of_imagenet else given["image_size"],
            "base_channels": 16 if of_imagenet else 8,  # what a vector register holds divides 14 x 14 x 2 of these
            "attention_sizes": [],
            "preconditioning": "consistency",
        }
        return SongUNetDenoiser(**small)


def attack(part: Part, folder: Path, **options: Any) -> list[str]:
    """Command-line words that give ``options`` to an attack, those that it has.

    An ensemble gets them in a file below ``folder``, and its members too, with one target class instead of many. Of
    members that are of the same classes the first is kept: all of them attack in few steps in `test_table_rows.py`,
    and each alone in `tests/lustral/test_attack_configs.py`.
    """
    if "attacks" not in part.get("init_args", {}):
        return as_words("model.attack", _known(part, options))
    members = {classes(member): whole(member) for member in reversed(part["init_args"]["attacks"])}
    small = [
        {**m, "init_args": {**m.get("init_args", {}), **_known(m, {"num_targets": 1, **options})}}
        for m in reversed(members.values())
    ]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "attack.yaml"
    given = {**part["init_args"], **_known(part, options), "attacks": small}
    path.write_text(yaml.safe_dump({**part, "init_args": given}))
    return ["--model.attack", str(path)]


def classes(part: Any) -> str:
    """Those of a purifier or an attack, and of what that is made of, networks apart (every one is in some recipe's
    test); what is left are numbers."""
    return json.dumps(_classes(part))


def attacks(part: Any) -> set[str]:
    """The classes of an attack; of an ensemble its own, and those of each of its members."""
    members = (part.get("init_args") or {}).get("attacks", []) if isinstance(part, dict) else []
    return {part["class_path"]}.union(*map(attacks, members)) if members else {classes(part)}


def _classes(value: Any) -> Any:
    if isinstance(value, dict):
        options = sorted((value.get("init_args") or {}).items())
        inner = [_classes(part) for name, part in options if name not in ("denoiser", "scorer")]
        return [value.get("class_path"), *(each for each in inner if each)]
    if isinstance(value, list):
        return [each for each in map(_classes, value) if each]
    return value if isinstance(value, str) and value.startswith("lustral.") else None


def purifier_of(recipe: Path) -> Choice:
    """A recipe; a base without a purifier with the one that its first line names."""
    choice = Choice(recipe)
    if choice.parts()["purifier"] is None:
        command = recipe.read_text().partition("\n")[0]
        choice = Choice(recipe, groups={"purifier": Path(command.partition("--model.purifier ")[2].split()[0])})
    return choice


def followed(path: Path) -> Part:
    """The content of a YAML file with those that it picks in their places."""

    def follow(value: Any, folder: Path) -> Any:
        if isinstance(value, str) and value.endswith(".yaml"):
            return follow(yaml.safe_load((folder / value).read_text()), (folder / value).parent)
        if isinstance(value, list):
            return [follow(inner, folder) for inner in value]
        return {name: follow(inner, folder) for name, inner in value.items()} if isinstance(value, dict) else value

    return follow(path.name, path.parent)


def whole(part: Any) -> Part:
    """A part that may be a class path alone as a dict."""
    return {"class_path": part} if isinstance(part, str) else part


def fewer(part: Any, **options: Any) -> Any:
    """A part of a choice, and all that is in it, in few steps and with those of the options that it has."""
    if isinstance(part, list):
        return [fewer(each, **options) for each in part]
    if not isinstance(part, dict) or "class_path" not in part:
        return part
    given = {name: fewer(inner, **options) for name, inner in (part.get("init_args") or {}).items()}
    if "changes" in given:
        given["changes"] = _fewer_changes(given["changes"])
    return {**part, "init_args": {**given, **_fewest(given, 2), **_known(part, options)}}


def _fewer_changes(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a variant, whose keys are dotted, in the fewest steps."""
    last = {name: name.rpartition(".")[2] for name in changes}
    return {name: _fewest({last[name]: value}, 1).get(last[name], value) for name, value in changes.items()}


def _fewest(given: Part, most: int) -> dict[str, Any]:
    """A purifier's steps and rounds, ``most`` of each, at its own levels."""
    small: dict[str, Any] = {}
    if "t_small" in given:
        small["num_steps"] = [4, 1]  # with fewer in its first stage it refuses to be built
    elif "num_steps" in given:
        small["num_steps"] = min(most, int(given.get("t_star", most)))
    if given.get("num_resamples"):
        small["num_resamples"] = min(most, given["num_resamples"])
    if "num_rounds" in given:
        small["num_rounds"] = min(most, given["num_rounds"])
    if "rounds" in given:
        small["rounds"] = [[t_star, 1] for t_star, _ in (given["rounds"][0], given["rounds"][-1])[:most]]
    return small


def _known(part: Part, options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the options that a class has."""
    parameters = inspect.signature(imported(part["class_path"])).parameters
    return {name: value for name, value in options.items() if name in parameters}


def _under(key: str, options: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{key}.{name}": value for name, value in options.items()}


def as_words(key: str, options: Mapping[str, Any]) -> list[str]:
    """Options below ``key`` as the command line takes them."""
    start = f"--{key}." if key else "--"
    return [word for name, value in options.items() for word in (f"{start}{name}", in_one_line(value))]
