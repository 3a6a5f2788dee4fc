"""Shared set-up: the environment before torch, one thread, and small real components."""

import gc

gc.disable()  # until all is imported

from lustral import environment  # noqa: F401, I001  (must come before torchvision and lightning)

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path

import pytest
import torch

from datamodules import digits, scenes, streetdigits
from lustral.evaluation import probes
from lustral.networks import UNetDenoiser, WideResNet, save_network


def pytest_collection_finish() -> None:
    """What was imported stays: a million objects need not be looked through at every collection of garbage."""
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Several test processes share the cores; a pool of threads in each makes all of them slower."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _prepared_once() -> Iterator[None]:
    """scikit-learn's table of digits, and the shapes and labels of a whole split of scenes: making them anew for every
    data module takes longer than the few images that a test looks at. Nobody writes into them."""
    made = cache(lambda positions: scenes.Shapes(positions))

    def shapes(positions: Sequence[int]) -> scenes.Shapes:
        return made(tuple(positions))

    read = cache(digits.load_digits)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digits, "load_digits", read)
        patch.setattr(scenes, "load_digits", read)
        patch.setattr(streetdigits, "Shapes", shapes)
        patch.setattr(streetdigits, "balanced_labels", cache(streetdigits.balanced_labels))
        yield


@pytest.fixture(autouse=True, scope="session")
def _short_audits() -> Iterator[None]:
    """The audit's own attacks are shown to work in `tests/lustral/test_audit.py`; elsewhere they need only run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probes, "EFFORT", probes.Effort(3, 2, 2, 5, 3, 1))
        yield


@pytest.fixture(scope="session")
def digit_weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Weights files of a small classifier and a small denoiser for digits: random, but real files."""
    folder = tmp_path_factory.mktemp("weights")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        classifier = WideResNet(10, 1, num_classes=10, channels=1, image_size=8)
        denoiser = UNetDenoiser(8, 1, (8, 16), 1, (False, False), norm_groups=4, dropout=0.0, preconditioning="vp")
    return {
        "classifier": save_network(classifier, folder / "classifier.safetensors"),
        "denoiser": save_network(denoiser, folder / "denoiser.safetensors"),
    }


@pytest.fixture(scope="session")
def cli() -> Callable[..., int]:
    """The front door, in this process: `cli("test", "-c", ...)` returns the exit code."""
    from cli import main

    def run(*words: object) -> int:
        state = torch.random.get_rng_state()
        try:
            return main([str(word) for word in words])
        finally:
            torch.random.set_rng_state(state)

    return run
