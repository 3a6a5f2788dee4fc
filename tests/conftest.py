"""Shared set-up: the environment before torch, one thread, and small real components."""

from lustral import environment  # noqa: F401, I001  (must come before torchvision and lightning)

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Several test processes share the cores; a pool of threads in each makes all of them slower."""
    torch.set_num_threads(1)
