"""Shared set-up: the environment before torch, one thread, and small real components."""

from lustral import environment  # noqa: F401, I001  (must come before torchvision and lightning)

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lustral.networks import UNetDenoiser, WideResNet, save_network


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Several test processes share the cores; a pool of threads in each makes all of them slower."""
    torch.set_num_threads(1)


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


@pytest.fixture
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
