"""Training of kernels: the images it chooses, that it goes on where it stopped, and what it refuses."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer

from datamodules import Digits
from lightning_modules import MMDKernelTraining
from lustral.attacks import PGD
from lustral.detectors import SemanticKernel
from lustral.networks import Penultimate, load_classifier
from lustral.tensor_files import read_tensors
from lustral.threat import ThreatModel

RECIPE = "configs/train/digits_mmd.yaml"


def words(run: Path, classifier: Path, epochs: int, **more: Any) -> list[str]:
    small = {
        "trainer.default_root_dir": run,
        "trainer.accelerator": "cpu",
        "trainer.max_epochs": epochs,
        "trainer.check_val_every_n_epoch": 1,  # a checkpoint is written after a validation
        "model.classifier.weights": classifier,
        "model.kernel.features.classifier.weights": classifier,
        "model.attack.num_steps": 2,
        "model.num_images": 40,
        "model.num_held_out": 20,
        "model.group_sizes": "[4,10]",
        "model.trials": 20,
        "data.batch_size": 20,
        **more,
    }
    return [word for name, value in small.items() for word in (f"--{name}", str(value))]


def test_a_training_that_stops_goes_on_to_the_same_kernel(
    cli: Callable[..., int], tmp_path: Path, digit_weights: dict[str, Path]
) -> None:
    classifier = digit_weights["classifier"]
    assert cli("fit", "-c", RECIPE, *words(tmp_path / "whole", classifier, 4)) == 0
    half, folder = tmp_path / "half", {"model.adversarial_folder": tmp_path / "whole" / "adversarial"}
    assert cli("fit", "-c", RECIPE, *words(half, classifier, 2, **folder)) == 0
    (checkpoint,) = (half / "checkpoints").glob("*.ckpt")
    assert cli("fit", "-c", RECIPE, *words(half, classifier, 4, **folder), "--ckpt_path", checkpoint) == 0
    whole, resumed = (read_tensors(tmp_path / run / "weights.safetensors") for run in ("whole", "half"))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    reports = [json.loads((tmp_path / run / "kernel.json").read_text()) for run in ("whole", "half")]
    assert reports[0] == reports[1], "what was measured before the training is kept in its checkpoint"
    assert reports[0]["before"]["kernel"] != reports[0]["after"]["kernel"]
    assert reports[0]["after"]["power"].keys() == {"4", "10"}
    again = SemanticKernel(
        Penultimate(load_classifier(str(classifier))), weights=str(tmp_path / "whole" / "weights.safetensors")
    )
    assert again.numbers() == reports[0]["after"]["kernel"]


def training(weights: Path, **options: Any) -> MMDKernelTraining:
    classifier = load_classifier(str(weights))
    kernel = SemanticKernel(Penultimate(classifier))
    return MMDKernelTraining(kernel, classifier, PGD(1), ThreatModel("linf", 0.1), **options)


def test_images_are_drawn_balanced_and_apart(digit_weights: dict[str, Path]) -> None:
    data = Digits(64)
    used, held = training(digit_weights["classifier"], num_images=100, num_held_out=200)._choose(data)
    assert (len(set(used)), len(set(held))) == (100, 200)
    assert not set(used) & set(held)
    assert set(used) | set(held) <= set(data.train_parts[0])
    counts = torch.bincount(torch.as_tensor(data.train_source.labels[used]))
    assert counts.min() >= 8
    assert counts.max() <= 12
    with pytest.raises(ValueError, match="digits trains on 1157 images"):
        training(digit_weights["classifier"], num_images=1000)._choose(data)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"objective": "best"}, "may be finite or published"),
        ({"group_sizes": [100], "num_held_out": 150}, "two groups of different held-out images"),
        ({"level": 0.0}, "level between 0 and 1"),
    ],
)
def test_impossible_settings_are_refused(options: dict[str, Any], said: str, digit_weights: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match=said):
        training(digit_weights["classifier"], **options)


def test_random_weights_are_refused(digit_weights: dict[str, Path], tmp_path: Path) -> None:
    module = training(digit_weights["classifier"])
    module.victims.classifier.weights = None
    trainer = Trainer(accelerator="cpu", max_epochs=1, logger=False, default_root_dir=tmp_path)
    with pytest.raises(ValueError, match=r"weights of classifier, kernel\.features are random"):
        trainer.fit(module, datamodule=Digits(64))


def test_a_training_that_could_write_no_reference_is_refused_before_it_begins(
    digit_weights: dict[str, Path], tmp_path: Path
) -> None:
    trainer = Trainer(accelerator="cpu", max_epochs=1, logger=False, default_root_dir=tmp_path)
    with pytest.raises(ValueError, match=r"raise data\.num_val"):
        trainer.fit(training(digit_weights["classifier"]), Digits(64, num_val=1))
    assert not any(tmp_path.iterdir())
