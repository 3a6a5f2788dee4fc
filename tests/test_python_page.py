"""The listings of docs/python.md run, one after another, in one session and on few images."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torchvision.models import resnet18

import lustral.api
from datamodules import Digits
from lustral.evaluation import Protocol
from lustral.networks import load_classifier
from tests.cli.evaluations import FASTEST

PAGE = Path("docs/python.md").read_text()
ATTACK = ["--model.attack", "lustral.attacks.PGD", "--model.attack.num_steps", "1"]


def _listings(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def test_the_python_listings_run(
    digit_weights: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = Digits(num_test=2)
    labels = torch.as_tensor(data.test_source.labels[data.test_indices])
    evaluate: Callable[..., Any] = lustral.api.evaluate
    few = {"protocol": Protocol(2, 0), "rows": 2, "progress": False}
    monkeypatch.setattr(lustral.api, "evaluate", lambda *words, **options: evaluate(*words, **{**options, **few}))
    session = {
        "model": load_classifier(str(digit_weights["classifier"])),
        "images": data.test_images(data.test_indices),
        "labels": labels,
        "torch": torch,
    }
    for listing in _listings("python"):
        listing = listing.replace("runs/train/digits_diffusion/weights.safetensors", str(digit_weights["denoiser"]))
        listing = listing.replace("runs/python", str(tmp_path)).replace("PGD(20, eot=8)", "PGD(1, eot=1)")
        exec(compile(listing, "docs/python.md", "exec"), session)
    assert session["result"].card["attack"]["function"]["name"].endswith("foreign")
    assert session["logits"].shape == (2, 10)
    assert (tmp_path / "diffpure" / "card.json").is_file()


def test_the_recipes_run(cli: Callable[..., int], tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.save(resnet18(num_classes=10).state_dict(), tmp_path / "own.pt")
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    np.savez(tmp_path / "test.npz", images=images, labels=np.array([0, 9]))
    (command,) = _listings("bash")
    words = command.replace("\\\n", " ").split()[2:]
    words[words.index("runs/eval/own")] = str(tmp_path / "run")
    own = ["--data.test_file", str(tmp_path / "test.npz"), "--model.classifier.weights", str(tmp_path / "own.pt")]
    assert cli(*words, *own, *ATTACK, *FASTEST) == 0
    (yaml_part,) = _listings("yaml")
    assert yaml.safe_load(yaml_part)["attack"]["class_path"] == "lustral.attacks.ForeignAttack"
