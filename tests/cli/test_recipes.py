"""Every recipe runs through the real front door, shrunk: real files in the very formats, small networks."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from lustral.reporting.published import all_published
from tests.cli.shrunk import Shrinker, follow, read, training

CONFIGS = Path("configs")
TRAIN = sorted((CONFIGS / "train").glob("*.yaml"))
EVAL = sorted((CONFIGS / "eval").glob("*.yaml"))
REFERENCE = sorted((CONFIGS / "reference").glob("*.yaml"))
SURROGATE = sorted((CONFIGS / "surrogate").glob("*.yaml"))

SHRUNK_UNET = [
    *("--model.purifier.denoiser.base_channels", "8", "--model.purifier.denoiser.multipliers", "[1,2]"),
    *("--model.purifier.denoiser.blocks", "1"),
    *("--model.purifier.t_star", "10", "--model.purifier.num_steps", "2"),
]
FAST = [
    *("--data.num_test", "3", "--model.attack.num_steps", "2", "--model.attack.eot", "2"),
    *("--model.attack.selection_draws", "2", "--model.protocol.verdict_draws", "3"),
    *("--model.protocol.audit_images", "1", "--model.rows", "8"),
]


@pytest.fixture(scope="session")
def shrinker(tmp_path_factory: pytest.TempPathFactory, digit_weights: dict[str, Path]) -> Shrinker:
    from cli import main

    return Shrinker(tmp_path_factory.mktemp("shrunk"), digit_weights, lambda *words: main([str(w) for w in words]))
