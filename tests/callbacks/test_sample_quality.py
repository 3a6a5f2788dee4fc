"""Samples of a diffusion training: the sheet, the numbers, and that the numbers tell digits from what is none."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from scipy.linalg import sqrtm
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from callbacks import EMA, SampleGrid, SampleQuality
from callbacks.sample_grid import sheet
from callbacks.sample_quality import evenly
from datamodules import Digits
from lightning_modules import ClassifierTraining, DiffusionTraining
from lustral.diffusion import DDIM, Ancestral
from lustral.diffusion.sampling import sample
from lustral.metrics import FrechetDistance
from lustral.networks import Classifier, WideResNet, load_classifier, load_denoiser
from lustral.networks.weights import read_weights
from lustral.noise import NoiseStream
from tests.contracts import ToyClassifier, generator


@pytest.fixture(scope="module")
def digits() -> dict[str, Tensor]:
    """(n, 1, 8, 8) images of each part."""
    data = Digits()
    train, val = data.train_parts
    parts = {name: [data.train_source.image(p) for p in part] for name, part in (("train", train), ("val", val))}
    return {name: torch.stack(part) for name, part in parts.items()} | {"test": data.test_images(data.test_indices)}


@pytest.fixture(scope="module")
def trained(digits: dict[str, Tensor]) -> Classifier:
    """A classifier of digits after a few seconds of training."""
    data, source = Digits(), generator()
    labels = torch.as_tensor(data.train_source.labels)[data.train_parts[0]]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        classifier = WideResNet(10, 1, 10, 1, 8)
    optimizer = torch.optim.AdamW(classifier.parameters(), 1e-2)
    for _ in range(6):
        for rows in torch.randperm(len(labels), generator=source).split(64):
            optimizer.zero_grad()
            F.cross_entropy(classifier(digits["train"][rows]), labels[rows]).backward()
            optimizer.step()
    return classifier.eval()


# What the number tells ---------------------------------------------------------------------------------------


def _ratio_and_shares(classifier: Classifier, images: Tensor, digits: dict[str, Tensor]) -> tuple[float, Tensor]:
    """What a model that draws ``images`` would be given: Frechet distance to the test digits in units of that of the
    training digits, and class shares."""
    distance = FrechetDistance(classifier)
    distance.update(digits["test"], real=True)
    distance.update(digits["train"], real=False)
    yardstick = float(distance.compute())
    distance.reset()
    distance.update(images, real=False)
    return float(distance.compute()) / yardstick, distance.class_shares()


LARGEST_RATIO, SHARES = 2.25, (0.04, 0.20)  # of a good model 1.7: hands that nobody has seen are a large unit


def test_digits_pass_the_check(trained: Classifier, digits: dict[str, Tensor]) -> None:
    """Training digits that were changed a little, drawn with repetition, as a good model would draw them."""
    source = generator()
    drawn = digits["train"][torch.randint(0, len(digits["train"]), (2000,), generator=source)]
    drawn = (drawn + 0.02 * torch.randn(drawn.shape, generator=source)).clamp(0, 1)
    ratio, shares = _ratio_and_shares(trained, drawn, digits)
    assert ratio < LARGEST_RATIO / 2
    assert SHARES[0] < float(shares.min()) < float(shares.max()) < SHARES[1]


def test_noise_and_averages_of_two_digits_fail_by_far(trained: Classifier, digits: dict[str, Tensor]) -> None:
    source = generator()
    noise = torch.rand(2000, 1, 8, 8, generator=source)
    one, two = (digits["train"][torch.randint(0, len(digits["train"]), (2000,), generator=source)] for _ in range(2))
    noise_ratio, noise_shares = _ratio_and_shares(trained, noise, digits)
    average_ratio, _ = _ratio_and_shares(trained, (one + two) / 2, digits)
    assert noise_ratio > 10 * LARGEST_RATIO
    assert float(noise_shares.max()) > 1.5 * SHARES[1]
    assert average_ratio > 4 * LARGEST_RATIO


# The callbacks in a training ---------------------------------------------------------------------------------


def _fit(
    module: LightningModule, folder: Path, callbacks: list[Any], epochs: int = 2, batches: int = 3
) -> tuple[Trainer, Digits]:
    trainer = Trainer(
        max_epochs=epochs,
        limit_train_batches=batches,
        limit_val_batches=1,
        accelerator="cpu",
        logger=TensorBoardLogger(folder, name="tensorboard", version=""),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        callbacks=callbacks,
        log_every_n_steps=1,
        default_root_dir=folder,
    )
    data = Digits(batch_size=32)
    trainer.fit(module, datamodule=data)
    return trainer, data


def _module(digit_weights: dict[str, Path]) -> DiffusionTraining:
    return DiffusionTraining(
        load_denoiser(str(digit_weights["denoiser"])), optimizer=lambda p: torch.optim.Adam(p, 5e-3, fused=True)
    )


def _events(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return events


def test_the_sheet_is_drawn_with_averaged_weights(tmp_path: Path, digit_weights: dict[str, Path]) -> None:
    seen: list[tuple[Tensor, bool]] = []

    class Watching(SampleGrid):
        def draw(self, pl_module: LightningModule, numbers: Tensor) -> Tensor:
            weights = torch.cat([p.detach().flatten() for p in pl_module.parameters()])
            seen.append((weights, pl_module.training))
            return super().draw(pl_module, numbers)

    module = _module(digit_weights)
    trained: list[Tensor] = []
    module.on_train_epoch_end = lambda: trained.append(torch.cat([p.detach().flatten() for p in module.parameters()]))  # type: ignore[method-assign]
    _fit(module, tmp_path, [EMA(0.9), Watching(DDIM(), num_steps=2, num_images=5)])
    assert len(seen) == 2  # one an epoch; the sanity check before training draws nothing
    final = torch.cat([p.detach().flatten() for p in module.parameters()])  # after training: the average
    assert torch.equal(seen[1][0], final)
    assert not torch.equal(seen[1][0], trained[1])
    assert not any(training for _, training in seen)

    with Image.open(tmp_path / "samples.png") as picture:
        assert (picture.mode, picture.size) == ("RGB", (152, 102))  # 3 x 2 images, six times as large, framed
    assert [image.step for image in _events(tmp_path).Images("val/samples")] == [3, 6]


def test_only_every_nth_epoch_draws(tmp_path: Path, digit_weights: dict[str, Path]) -> None:
    _fit(_module(digit_weights), tmp_path, [SampleGrid(DDIM(), 1, 2, every_n_epochs=2)], epochs=5, batches=1)
    assert [image.step for image in _events(tmp_path).Images("val/samples")] == [2, 4]


def _distance(one: Tensor, two: Tensor) -> float:
    """Straight from the definition, with scipy's root of a matrix."""
    (mean_1, cov_1), (mean_2, cov_2) = ((x.mean(0), np.cov(x.T)) for x in (one.double().numpy(), two.double().numpy()))
    root = np.asarray(sqrtm(cov_1 @ cov_2))
    return float(((mean_1 - mean_2) ** 2).sum() + np.trace(cov_1 + cov_2 - 2 * np.real(root)))


@pytest.fixture
def quality(digit_weights: dict[str, Path]) -> SampleQuality:
    classifier = load_classifier(str(digit_weights["classifier"]))
    return SampleQuality(classifier, Ancestral(), num_samples=90, num_steps=3, num_images=4, rows=40, seed=5)


def test_the_numbers_are_those_of_the_definition(
    tmp_path: Path, digit_weights: dict[str, Path], quality: SampleQuality, digits: dict[str, Tensor]
) -> None:
    """At validation in a training, and at a test of the trained network."""
    module = _module(digit_weights)
    trainer, data = _fit(module, tmp_path, [EMA(0.9), quality])
    fitted = {k: float(v) for k, v in trainer.callback_metrics.items()}
    (tested,) = trainer.test(module, datamodule=data, verbose=False)

    noise = NoiseStream(5, torch.arange(90)).fork("samples")
    drawn = sample(module.denoiser.eval(), noise, Ancestral(), 3)
    shares = torch.bincount(quality.classifier(drawn).argmax(1), minlength=10) / 90
    even = {name: x[[int(i * max(1, len(x) / 90)) for i in range(90)]] for name, x in digits.items()}
    with torch.no_grad():
        features = {name: quality.classifier.features(x) for name, x in {**even, "drawn": drawn}.items()}
    for stage, found in (("val", fitted), ("test", tested)):
        samples, real = (_distance(features[name], features[stage]) for name in ("drawn", "train"))
        assert found[f"{stage}/frechet"] == pytest.approx(samples, rel=1e-3)
        assert found[f"{stage}/frechet_real"] == pytest.approx(real, rel=1e-3)
        assert found[f"{stage}/frechet_ratio"] == pytest.approx(samples / real, rel=1e-3)
        assert found[f"{stage}/class_share_min"] == pytest.approx(float(shares.min()))
        assert found[f"{stage}/class_share_max"] == pytest.approx(float(shares.max()))
    assert len(_events(tmp_path).Scalars("val/frechet_ratio")) == 2
    assert (tmp_path / "samples.png").is_file()


def test_the_recipe_measures_a_finished_model_alike_on_one_process_and_on_two(
    cli: Callable[..., int], tmp_path: Path, digit_weights: dict[str, Path]
) -> None:
    words = [
        *("test", "-c", "configs/train/digits_diffusion.yaml", "-c", "configs/quality/digits.yaml"),
        *("--model.denoiser", "lustral.networks.load_denoiser", "--model.denoiser.weights", digit_weights["denoiser"]),
        *("--trainer.callbacks.classifier.weights", digit_weights["classifier"], "--trainer.accelerator", "cpu"),
        *("--trainer.callbacks.num_samples", "81", "--trainer.callbacks.num_steps", "2"),
        *("--trainer.callbacks.num_images", "30"),
    ]
    assert cli(*words, "--trainer.default_root_dir", tmp_path / "one") == 0
    command = [sys.executable, "cli.py", *map(str, words), "--trainer.default_root_dir", str(tmp_path / "two")]
    command += ["-c", "configs/trainer/ddp_cpu.yaml"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == 0, done.stderr
    one, two = (_events(tmp_path / name) for name in ("one", "two"))
    for name in ("frechet", "frechet_real", "frechet_ratio", "class_share_min", "class_share_max"):
        values = [events.Scalars(f"test/{name}")[0].value for events in (one, two)]
        assert values[1] == pytest.approx(values[0], rel=1e-4), name
    assert (tmp_path / "one" / "samples.png").read_bytes() == (tmp_path / "two" / "samples.png").read_bytes()


def test_a_training_may_measure_its_samples(
    cli: Callable[..., int], tmp_path: Path, digit_weights: dict[str, Path]
) -> None:
    """The second file appends to the callbacks of the first, after its EMA."""
    code = cli(
        *("fit", "-c", "configs/train/digits_diffusion.yaml", "-c", "configs/quality/digits.yaml"),
        *("--trainer.callbacks.classifier.weights", digit_weights["classifier"], "--trainer.accelerator", "cpu"),
        *("--trainer.callbacks.num_samples", "20", "--trainer.callbacks.num_steps", "2"),
        *("--trainer.callbacks.every_n_epochs", "1", "--trainer.check_val_every_n_epoch", "1"),
        *("--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2", "--trainer.default_root_dir", tmp_path),
    )
    assert code == 0
    record, _ = read_weights(tmp_path / "weights.safetensors")
    assert float(record["notes"]["val/frechet_ratio"]) > 0
    assert len(_events(tmp_path).Images("val/samples")) == 2  # the training recipe's own, and that of the measured


def test_one_step_and_two_are_measured_beside_each_other(
    cli: Callable[..., int], tmp_path: Path, digit_weights: dict[str, Path]
) -> None:
    """Of a consistency model; each has numbers, a picture and a file of its own."""
    quality = yaml.safe_load(Path("configs/quality/digits_consistency.yaml").read_text())
    for callback in quality["trainer"]["callbacks+"]:
        weights = {"weights": str(digit_weights["classifier"])}
        small = {"classifier": {"class_path": "lustral.networks.load_classifier", "init_args": weights}}
        callback["init_args"] |= small | {"num_samples": 20, "num_images": 4, "every_n_epochs": 1}
    (tmp_path / "quality.yaml").write_text(yaml.safe_dump(quality))
    code = cli(
        *("fit", "-c", "configs/train/digits_consistency.yaml", "-c", tmp_path / "quality.yaml"),
        *("--trainer.check_val_every_n_epoch", "1", "--trainer.max_epochs", "1", "--trainer.accelerator", "cpu"),
        *("--trainer.limit_train_batches", "2", "--trainer.default_root_dir", tmp_path),
    )
    assert code == 0
    record, _ = read_weights(tmp_path / "weights.safetensors")
    ratios = [float(record["notes"][f"val/{label}_frechet_ratio"]) for label in ("one_step", "two_steps")]
    assert ratios[0] != ratios[1]
    shown = _events(tmp_path).Tags()["images"]
    assert set(shown) == {"val/samples", "val/one_step_samples", "val/two_steps_samples"}
    assert {path.name for path in tmp_path.glob("samples*.png")} == {
        "samples.png",
        "samples_one_step.png",
        "samples_two_steps.png",
    }


# Pieces and refusals -----------------------------------------------------------------------------------------


def test_a_sheet_shows_every_image_in_its_place() -> None:
    grey = torch.tensor([0.1, 0.3, 0.5])[:, None, None, None].expand(-1, 3, 60, 50)
    picture = sheet(grey)
    assert picture.shape == (3, 2 * 62 + 2, 2 * 52 + 2)  # large enough as they are
    inside = [picture[:, 2:62, 2:52], picture[:, 2:62, 54:104], picture[:, 64:124, 2:52], picture[:, 64:124, 54:104]]
    assert [float(part.unique()) for part in inside] == pytest.approx([0.1, 0.3, 0.5, 1.0])
    assert float(picture.sum()) == pytest.approx(3 * (126 * 106 - 60 * 50 * (0.9 + 0.7 + 0.5)), rel=1e-5)


def test_positions_are_taken_evenly() -> None:
    assert evenly(list(range(10, 20)), 3) == [10, 13, 16]
    assert evenly(list(range(10, 20)), 10) == evenly(list(range(10, 20)), 50) == list(range(10, 20))


def test_random_features_and_empty_numbers_are_refused(digit_weights: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match="weights of the ToyClassifier are random"):
        SampleQuality(ToyClassifier(), DDIM())
    with pytest.raises(ValueError, match="num_samples is 1"):
        SampleQuality(ToyClassifier(weights="file"), DDIM(), num_samples=1)
    with pytest.raises(ValueError, match="num_images is 0; SampleGrid needs at least 1"):
        SampleGrid(DDIM(), num_images=0)


def test_what_cannot_be_drawn_or_compared_is_refused(tmp_path: Path, digit_weights: dict[str, Path]) -> None:
    module = _module(digit_weights)
    with pytest.raises(ValueError, match="name EMA first"):
        _fit(module, tmp_path, [SampleGrid(DDIM()), EMA(0.9)])
    with pytest.raises(ValueError, match="ClassifierTraining has none"):
        _fit(ClassifierTraining(WideResNet(10, 1, 10, 1, 8)), tmp_path, [SampleGrid(DDIM())])
    with pytest.raises(ValueError, match=r"takes images of shape \(1, 4, 4\)"):
        _fit(module, tmp_path, [SampleQuality(ToyClassifier(weights="file"), DDIM(), num_samples=4, num_steps=1)])
    trainer = Trainer(accelerator="cpu", logger=False, callbacks=[SampleQuality(ToyClassifier(weights="file"), DDIM())])
    with pytest.raises(ValueError, match="give the trainer one of `datamodules`"):
        trainer.validate(module, Digits().val_dataloader())
