"""What makes each shipped recipe run in seconds: fixture data in the very formats, and the smallest networks."""

from collections.abc import Callable
from pathlib import Path

from datamodules.imagenet import LISTS
from datamodules.synsets import read_synsets
from lustral.networks import TimmClassifier, save_network
from tests.datamodules.fixtures import write_cifar10, write_imagenet, write_svhn

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
TIMM = ["--model.classifier.name", "resnet10t"]

# Recipe: what shrinks its network. A recipe that is not named is small already.
NETWORKS: dict[str, list[str]] = {
    "cifar10_classifier": WIDE_RESNET,
    "cifar10_resnet18": ["--model.classifier.width", "4"],
    "cifar10_resnet56": ["--model.classifier.blocks", "[1,1,1]"],
    "cifar10_shufflenetv2": ["--model.classifier.scale", "0.5"],
    "cifar10_diffusion": SONG_UNET,
    "cifar10_edm_diffusion": SONG_UNET,
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
    return [*data, *NETWORKS.get(recipe.stem, [])]
